/* ---------------------------------------------------------------- images */
function shot([image, label], name) {
  const { data: source, width, height } = data.images[image];
  const alt = label ? `${name}: ${label}` : name;
  const img = make("img", { src: source, alt, width, height, decoding: "async" });
  if (Math.max(width, height) <= 64) img.className = "pixels";
  return make("span", { class: "shot" }, img, label ? make("span", {}, label) : null);
}
function captionOf(image) {
  const lines = image.caption.map(line => make("div", {}, line));
  if (image.wrong !== null) {
    lines.unshift(make("div", { class: "verdict " + (image.wrong ? "wrong" : "right") }, image.wrong ? "✗ wrong" : "✓ right"));
  }
  return make("div", { class: "caption" }, ...lines);
}
function card(images, index) {
  const image = images[index], wide = Math.min(image.thumbnails.length, 3);
  return make("button", { type: "button", class: "card" + (wide > 1 ? ` wide${wide}` : ""), onclick: () => enlarge(images, index) },
    make("span", { class: "shots" }, ...image.thumbnails.map(thumbnail => shot(thumbnail, image.name))),
    captionOf(image), make("span", { class: "name" }, image.name));
}
document.querySelectorAll("[data-gallery]").forEach(place => {
  const images = data.galleries[place.dataset.gallery];
  place.append(...images.map((_, index) => card(images, index)));
});

const viewer = byId("page-viewer");
let viewed = { images: [], index: 0 };
function enlarge(images, index) {
  viewed = { images, index };
  const image = images[index];
  byId("page-viewer-name").textContent = image.name;
  byId("page-viewer-count").textContent = `${index + 1} of ${images.length}`;
  byId("page-viewer-images").replaceChildren(...image.thumbnails.map(thumbnail => shot(thumbnail, image.name)));
  byId("page-viewer-caption").replaceChildren(captionOf(image));
  byId("page-viewer-previous").disabled = index === 0;
  byId("page-viewer-next").disabled = index === images.length - 1;
  if (!viewer.open) viewer.showModal();
}
function turn(step) {
  const index = viewed.index + step;
  if (index >= 0 && index < viewed.images.length) enlarge(viewed.images, index);
}
byId("page-viewer-close").addEventListener("click", () => viewer.close());
byId("page-viewer-previous").addEventListener("click", () => turn(-1));
byId("page-viewer-next").addEventListener("click", () => turn(1));
viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") turn(-1);
  else if (event.key === "ArrowRight") turn(1);
});
