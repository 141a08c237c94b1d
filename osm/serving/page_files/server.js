// The requests that the page sends.

const KEY = "osm-api-key";

/** Take the API key from the address, so that it neither stays there nor in the history. */
export function takeKeyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!found) return;
  sessionStorage.setItem(KEY, found);
  history.replaceState(null, "", location.pathname);
}

async function askForKey() {
  const dialog = document.getElementById("key-dialog");
  dialog.showModal();
  await new Promise(done => dialog.addEventListener("close", done, {once: true}));
  sessionStorage.setItem(KEY, document.getElementById("key").value.trim());
}

/** Send a request, and return the response. Throws an Error with the server's sentence. */
export async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = {...(options.headers || {}), ...(key ? {Authorization: `Bearer ${key}`} : {})};
  let response;
  try {
    response = await fetch(path, {...options, headers});
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    await askForKey();
    return send(path, options);
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => null);
  const error = new Error(document?.error?.message || `The server answered with status ${response.status}.`);
  error.code = document?.error?.code;
  throw error;
}

export async function getJson(path) {
  return (await send(path)).json();
}

export async function postJson(path, body) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  return send(path, options);
}

export async function postImage(blob, name) {
  const form = new FormData();
  form.append("image", blob, name);
  return (await send("/v1/images", {method: "POST", body: form})).json();
}
