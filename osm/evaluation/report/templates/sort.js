// Sort the rows of a table by the column whose header is clicked. data-v is the value that a cell is sorted by.
for (const button of document.querySelectorAll("table.sort th button")) button.onclick = () => {
  const th = button.parentNode, table = th.closest("table"), column = th.cellIndex, body = table.tBodies[0];
  const down = th.getAttribute("aria-sort") === "ascending";
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b), n = Number(x) - Number(y);
    return Number.isNaN(n) ? x.localeCompare(y) : n;
  });
  body.append(...(down ? rows.reverse() : rows));
};
