"use strict";
const $ = (id) => document.getElementById(id);
const made = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
let about;

async function start() {
  about = await (await fetch("about")).json();
  $("name").textContent = about.name;
  document.title = about.name;
  const few = about.classes.slice(0, 20).join(", ") + (about.classes.length > 20 ? ", ..." : "");
  const facts = [`${about.examples} examples`];
  if (about.classes.length) facts.push(`${about.classes.length} classes: ${few}`);
  if (about.accuracy !== null && about.interval) {
    const [low, high] = about.interval.map((x) => x.toFixed(2));
    facts.push(`leave-one-out accuracy ${about.accuracy.toFixed(2)} [${low}, ${high}] on ${about.judged}`);
  }
  if (about.abstain !== null) facts.push(`no class below probability ${about.abstain}`);
  $("facts").textContent = facts.join(" · ");
  if (about.modality === "text") {
    $("write").hidden = false;
  } else {
    const what = about.modality === "image" ? "images" : `a CSV file with the columns ${about.columns.join(", ") || "of the inputs"}`;
    $("hint").textContent = `Drop ${what} here, or choose files (at most ${Math.floor(about.limit / 1e6)} MB each)`;
    $("drop").hidden = false;
  }
}

async function ask(body, type, card) {
  try {
    const answer = await fetch("predict", { method: "POST", body, headers: { "Content-Type": type } });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    for (const each of found) show(card, each, found.length > 1);
    card.dataset.done = "true";
  } catch (error) {
    card.append(made("p", error.message, "error"));
    card.dataset.done = "error";
  }
}

function show(card, found, named) {
  if (named) card.append(made("p", found.name));
  if (found.values) {
    card.append(made("h2", found.values.map((x) => x.toPrecision(4)).join(", ")));
    return;
  }
  card.append(made("h2", found.predicted === null ? "no class: too uncertain" : found.predicted));
  for (const [name, p] of found.probabilities) {
    const row = made("div", undefined, "row");
    const bar = document.createElement("meter");
    bar.value = p;
    row.append(made("span", name), bar, made("span", `${(100 * p).toFixed(1)} %`));
    card.append(row);
  }
}

async function take(files) {
  $("message").textContent = "";
  for (const file of files) {
    const type = about.modality === "image" ? file.type : "text/csv";
    if (file.size > about.limit) {
      $("message").textContent = `${file.name} has ${file.size.toLocaleString()} bytes; at most ${about.limit.toLocaleString()} are read`;
      continue;
    }
    if (!about.accepted.includes(type)) {
      $("message").textContent = `${file.name} is not read; allowed: ${about.accepted.join(", ")}`;
      continue;
    }
    const card = made("article");
    if (about.modality === "image") {
      const image = document.createElement("img");
      image.alt = "";
      image.src = URL.createObjectURL(file);
      image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
      card.append(image);
    }
    card.append(made("p", file.name));
    $("results").prepend(card);
    await ask(file, type, card);
  }
}

for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
$("drop").addEventListener("dragover", () => $("drop").classList.add("over"));
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  $("drop").classList.remove("over");
  take([...event.dataTransfer.files]);
});
$("files").addEventListener("change", () => take([...$("files").files]));
$("write").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  const card = made("article");
  card.append(made("p", text.length > 300 ? `${text.slice(0, 300)}...` : text));
  $("results").prepend(card);
  ask(text, "text/plain", card);
});
start().catch((error) => { $("message").textContent = error.message; });
