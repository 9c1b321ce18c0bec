// A picture whose tokens can be painted. The server gives {picture, rows, columns}; painting gives {cells} back.
const board = element.querySelector("canvas");
const brush = board.getContext("2d");
const picture = new Image();
let rows = 0, columns = 0, painting = true, last = null;
const cells = new Set();

const show = () => {
  brush.clearRect(0, 0, board.width, board.height);
  if (!rows) return;
  brush.imageSmoothingEnabled = picture.naturalWidth > 128;
  brush.drawImage(picture, 0, 0, board.width, board.height);
  const width = board.width / columns, height = board.height / rows;
  brush.fillStyle = "rgba(249, 115, 22, 0.75)";
  for (const cell of cells) {
    brush.fillRect((cell % columns) * width, Math.floor(cell / columns) * height, width, height);
  }
};
const tell = () => { props.value = JSON.stringify({ cells: [...cells] }); };
const take = () => {
  const given = JSON.parse(props.value || "{}");
  if ("cells" in given) return; // our own
  cells.clear();
  ({ rows = 0, columns = 0 } = given);
  element.querySelector(".board").classList.toggle("empty", !rows);
  if (!rows) return show();
  picture.onload = () => {
    board.height = Math.round((board.width * picture.naturalHeight) / picture.naturalWidth);
    show();
  };
  picture.src = given.picture;
};
const at = (event) => {
  const box = board.getBoundingClientRect();
  const part = (x, from, size, count) => Math.min(count - 1, Math.max(0, Math.floor(((x - from) / size) * count)));
  return [part(event.clientX, box.left, box.width, columns), part(event.clientY, box.top, box.height, rows)];
};
// Every square on the way from the last one: fast moves leave none out.
const paint = (event) => {
  const [x, y] = at(event), [x0, y0] = last ?? [x, y], steps = Math.max(Math.abs(x - x0), Math.abs(y - y0), 1);
  for (let i = 0; i <= steps; i++) {
    const cell = Math.round(y0 + ((y - y0) * i) / steps) * columns + Math.round(x0 + ((x - x0) * i) / steps);
    painting ? cells.add(cell) : cells.delete(cell);
  }
  last = [x, y];
  show();
};
board.addEventListener("pointerdown", (event) => {
  if (!rows) return;
  board.setPointerCapture(event.pointerId);
  const [x, y] = at(event);
  painting = !cells.has(y * columns + x); // a painted square begins to be wiped
  last = null;
  paint(event);
});
board.addEventListener("pointermove", (event) => { if (rows && event.buttons) paint(event); });
board.addEventListener("pointerup", tell);
element.querySelector(".wipe").addEventListener("click", () => { cells.clear(); show(); tell(); });

// A picture of one's own goes as a PNG of at most 1024 pixels per side, and never as a file.
element.querySelector("input").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  let data = "";
  try {
    const own = await createImageBitmap(file);
    const scale = Math.min(1, 1024 / Math.max(own.width, own.height));
    const copy = document.createElement("canvas");
    copy.width = Math.max(1, Math.round(own.width * scale));
    copy.height = Math.max(1, Math.round(own.height * scale));
    copy.getContext("2d").drawImage(own, 0, 0, copy.width, copy.height);
    data = copy.toDataURL("image/png");
  } catch { /* no picture: the server says so */ }
  trigger("upload", { data });
});
watch("value", take);
take();
