#!/usr/bin/env bash
# Trains the bridge of osm-small that the package brings along (osm/weights/osm_small), and scores it.
#
#   scripts/shipped.sh DATA OUT
#
# DATA as for scripts/osm_small.sh. Beside its three sets this trains on collages (docs/models.md): cut-out photographs of
# Debian's package tuxpaint-stamps-default and segments of DATA/coco_mini/train, pasted on the photos of all three sets.
# STAMPS is the package's folder of stamps, where it is not installed and apt-get cannot fetch it. COLLAGES [600], and
# EPOCHS [8], VIEWS, SAMPLES and CACHE as there. Interrupted, it goes on where it was when started again.
set -euo pipefail
data=$(realpath "${1:?usage: scripts/shipped.sh DATA OUT}")
mkdir -p "${2:?usage: scripts/shipped.sh DATA OUT}"
out=$(realpath "$2")
root=$(dirname "$(dirname "$(realpath "$0")")")
python=${PYTHON:-python3}

stamps=${STAMPS:-/usr/share/tuxpaint/stamps}
if [ ! -d "$stamps" ]; then
  stamps=$out/stamps/usr/share/tuxpaint/stamps
  if [ ! -d "$stamps" ]; then
    mkdir -p "$out/stamps"
    (cd "$out/stamps" && apt-get -qq download tuxpaint-stamps-default)
    dpkg-deb -x "$out"/stamps/tuxpaint-stamps-default_*.deb "$out/stamps"
  fi
fi

collages() {  # collages SPLIT IMAGES BACKGROUNDS...
  local split=$1 images=$2
  shift 2
  PYTHONPATH=$root "$python" -m osm collages "$out/things" --table "$root/scripts/cutouts.yaml" --cutouts "$stamps" \
    --segments "$data/coco_mini/train" --split "$split" --images "$images" --backgrounds "$@"
}
collages train "${COLLAGES:-600}" "$data"/{coco_mini,camvid,clothing}/train/images
collages val 120 "$data/coco_mini/val/images"

THINGS=$out/things EPOCHS=${EPOCHS:-8} ONLY_PREDICT=1 "$root/scripts/osm_small.sh" "$data" "$out"

echo "== to ship: osm export $out/run/final osm/weights/osm_small --half"
