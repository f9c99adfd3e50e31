"use strict";

const $ = (id) => document.getElementById(id);
let adaptation = null;
let adapted = null; // the task that it is of

async function call(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = body === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (reply.ok) return reply;
  $("token-form").hidden = reply.status !== 401;
  if (reply.status === 401) $("token").focus();
  let message = `The server answered with status ${reply.status}.`;
  try {
    message = (await reply.json()).error.message;
  } catch {
    // Not one of our replies; the status has to do.
  }
  throw new Error(message);
}

// Runs `work` with `button` off, and tells what goes wrong in `place`.
async function guarded(button, place, work) {
  place.textContent = "";
  button.disabled = true;
  try {
    await work();
  } catch (problem) {
    place.textContent = problem.message;
  } finally {
    button.disabled = false;
  }
}

function addDemonstration(input = "", output = "") {
  const item = $("demonstration").content.firstElementChild.cloneNode(true);
  item.querySelector(".input").value = input;
  item.querySelector(".output").value = output;
  item.addEventListener("input", forget);
  item.querySelector(".remove").addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    label();
    forget();
    (next?.querySelector(".input") ?? $("add")).focus();
  });
  $("demonstrations").append(item);
  label();
  return item;
}

function label() {
  [...$("demonstrations").children].forEach((item, index) => {
    item.querySelector(".remove").setAttribute("aria-label", `Remove demonstration ${index + 1}`);
    item.querySelector(".input").setAttribute("aria-label", `Input of demonstration ${index + 1}`);
    item.querySelector(".output").setAttribute("aria-label", `Output of demonstration ${index + 1}`);
  });
}

function readTask() {
  const demonstrations = [...$("demonstrations").children]
    .map((item) => ({ input: item.querySelector(".input").value, output: item.querySelector(".output").value }))
    .filter((each) => each.input.trim() || each.output.trim());
  demonstrations.forEach((each, index) => {
    if (!each.input.trim() || !each.output.trim()) {
      throw new Error(`Demonstration ${index + 1} needs both an input and an output.`);
    }
  });
  const definition = $("definition").value;
  if (!demonstrations.length && !definition.trim()) throw new Error("Give a definition, a demonstration, or both.");
  return { definition, demonstrations };
}

// A changed task is not the one that was adapted to.
function forget() {
  if (!adaptation) return;
  adaptation = null;
  $("adapted").textContent = "The task has changed: adapt again.";
  asking(false);
  $("keep").hidden = true;
}

function asking(possible) {
  ["queries", "choices", "send", "curl", "python"].forEach((id) => { $(id).disabled = !possible; });
  $("code").hidden = true;
  $("copied").textContent = "";
}

function show(example) {
  $("definition").value = example.definition;
  $("demonstrations").replaceChildren();
  example.demonstrations.forEach((pair) => addDemonstration(...pair));
  $("queries").value = example.queries.join("\n");
  $("choices").value = example.choices ?? "";
  forget();
}

async function adapt() {
  const task = readTask();
  $("adapted").textContent = "Reading the task…";
  try {
    adaptation = await (await call("v1/adaptations", task)).json();
    adapted = task;
  } catch (problem) {
    $("adapted").textContent = "";
    throw problem;
  }
  const milliseconds = (1000 * adaptation.seconds).toFixed(adaptation.seconds < 0.01 ? 1 : 0);
  const given = task.demonstrations.length;
  const read = adaptation.demonstrations_read < given ? ` The model read ${adaptation.demonstrations_read} of ${given} demonstrations.` : "";
  const lacks = adaptation.never_seen.map((each) => ` The task ${each}.`).join("");
  const known = adaptation.new ? "Adapted" : "Known already: adapted";
  $("adapted").textContent = `${known} in one forward pass of ${milliseconds} ms.${read}${lacks}`;
  asking(true);
  $("id").textContent = adaptation.id;
  $("keep").hidden = false;
  $("queries").placeholder = "Inputs of the task, one a line";
  $("queries").focus();
}

// What is asked: the path of the request and its body, without the adaptation.
function question() {
  const inputs = $("queries").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!inputs.length) throw new Error("Type a query first.");
  const choices = $("choices").value.split(",").map((each) => each.trim()).filter(Boolean);
  if (choices.length === 1) throw new Error("Give at least two choices, with commas between them, or none.");
  return choices.length ? { path: "v1/classify", body: { inputs, choices } } : { path: "v1/generate", body: { inputs } };
}

async function ask() {
  const { path, body } = question();
  const replies = await Promise.all([call(path, { ...body, adaptation: adaptation.id }), call(path, body)]);
  const [own, bare] = await Promise.all(replies.map((reply) => reply.json()));
  const answers = (reply) => reply.classifications ?? reply.outputs;
  const items = body.inputs.map((query, index) => {
    const item = $("answer").content.firstElementChild.cloneNode(true);
    item.querySelector(".asked").textContent = query;
    fill(item.querySelector(".with"), answers(own)[index], body.choices);
    fill(item.querySelector(".without"), answers(bare)[index], body.choices);
    item.querySelector(".far").hidden = !own.far.includes(index);
    return item;
  });
  $("answers").prepend(...items);
  $("queries").select();
}

// An answer: a text, or a choice with a bar for the probability of each, in the order in which they were given.
function fill(place, answer, choices) {
  if (typeof answer === "string") {
    place.textContent = answer;
    return;
  }
  choices.forEach((choice) => {
    const probability = answer.probabilities[choice];
    const bar = $("bar").content.firstElementChild.cloneNode(true);
    bar.classList.toggle("chosen", choice === answer.choice);
    bar.querySelector(".choice").textContent = choice;
    bar.querySelector("meter").value = probability;
    bar.querySelector(".percent").textContent = `${(100 * probability).toFixed(1)} %`;
    place.append(bar);
  });
}

const address = (path) => new URL(path, location.href.split(/[?#]/)[0]).href;

function asCurl() {
  const { path, body } = question();
  const json = JSON.stringify({ ...body, adaptation: adaptation.id }).replaceAll("'", "'\\''");
  const token = sessionStorage.getItem("token") ? ` -H "Authorization: Bearer $HART_TOKEN"` : "";
  return `curl -s ${address(path)} -H 'Content-Type: application/json'${token} \\\n  -d '${json}'`;
}

function asPython() {
  const { body } = question();
  const literal = JSON.stringify; // whose texts and lists are Python's too
  const pairs = adapted.demonstrations.map((each) => `    (${literal(each.input)}, ${literal(each.output)}),\n`);
  const method = body.choices ? `classify(${literal(body.inputs)}, ${literal(body.choices)}, ` : `generate(${literal(body.inputs)}, `;
  return `from hart import Client, Task

task = Task(${literal(adapted.definition)}, [
${pairs.join("")}])
with Client(${literal(address("").replace(/\/$/, ""))}) as client:${sessionStorage.getItem("token") ? "  # the token is HART_TOKEN" : ""}
    print(client.${method}client.adapt(task)))`;
}

async function copy(text) {
  $("code").textContent = text;
  $("code").hidden = false;
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = "Copied.";
  } catch {
    // Browsers let only pages of this machine or of https do so.
    $("copied").textContent = "Copy it from here:";
  }
}

async function download() {
  const reply = await call(`v1/adaptations/${adaptation.id}/download`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await reply.blob());
  link.download = `adaptation-${adaptation.id.slice(0, 12)}.zip`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function start() {
  const health = await (await call("health")).json();
  $("model").textContent = `model ${health.model}`;
  $("base").textContent = health.base;
  if (["mini", "mini-causal"].includes(health.model)) {
    $("model").textContent += ", which knows a few hundred words and shows the method";
  }
  const examples = EXAMPLES[health.model] ?? EXAMPLES.other;
  examples.forEach((example, index) => $("example").append(new Option(example.name, index)));
  $("example").addEventListener("change", (event) => {
    if (event.target.value !== "") show(examples[Number(event.target.value)]);
  });
}

$("task").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded($("adapt"), $("task-problem"), adapt);
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (adaptation) guarded($("send"), $("ask-problem"), ask);
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("token-form").hidden = true;
  $("task-problem").textContent = "";
  $("adapt").focus();
});
$("definition").addEventListener("input", forget);
$("queries").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
["curl", "python"].forEach((id) => {
  $(id).addEventListener("click", () => guarded($(id), $("ask-problem"), () => copy(id === "curl" ? asCurl() : asPython())));
});
$("add").addEventListener("click", () => addDemonstration().querySelector(".input").focus());
$("download").addEventListener("click", () => guarded($("download"), $("ask-problem"), download));

addDemonstration();
addDemonstration();
start().catch((problem) => {
  $("task-problem").textContent = problem.message;
});
