"use strict";

// The bundled model knows a few hundred words, so its examples are of these. The others need a model of real text.
const EXAMPLES = {
  mini: [
    {
      name: "Only the fruits",
      definition: "You are given a list of words. Keep only the fruits, then end the answer with the word done.",
      demonstrations: [
        ["apple saw pear doctor lime", "apple pear lime done"],
        ["truck cherry grape black", "cherry grape done"],
      ],
      query: "plum lion hat banana",
    },
    {
      name: "Fruits, with plus between",
      definition: "The input is a row of words. Your job: keep only the fruits and after that put plus between them.",
      demonstrations: [
        ["cherry drill grape duck cat", "cherry plus grape"],
        ["melon lime grape horse saw black", "melon plus lime plus grape"],
      ],
      query: "jacket sheep melon pear apricot",
    },
  ],
  other: [
    {
      name: "Is the review positive?",
      definition: "Decide whether the review is positive or negative.",
      demonstrations: [
        ["The food was cold and the waiter rude.", "negative"],
        ["We will come back, everything was wonderful!", "positive"],
      ],
      query: "A long wait, but worth every minute.",
    },
    {
      name: "What is it about?",
      definition: "Name the topic of the sentence in one word.",
      demonstrations: [
        ["The goalkeeper saved a penalty in the last minute.", "sports"],
        ["The central bank raised its rates again.", "economy"],
      ],
      query: "The orchestra opened the season with Mahler.",
    },
  ],
};

const $ = (id) => document.getElementById(id);
let adaptation = null;
let examples = [];

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
  if (!demonstrations.length) throw new Error("Give at least one demonstration.");
  return { definition: $("definition").value, demonstrations };
}

// A changed task is not the one that was adapted to.
function forget() {
  if (!adaptation) return;
  adaptation = null;
  $("adapted").textContent = "The task has changed: adapt again.";
  $("query").disabled = $("send").disabled = true;
  $("keep").hidden = true;
}

function show(example) {
  $("definition").value = example.definition;
  $("demonstrations").replaceChildren();
  example.demonstrations.forEach((pair) => addDemonstration(...pair));
  $("query").value = example.query;
  forget();
}

async function adapt() {
  const task = readTask();
  $("adapted").textContent = "Reading the task…";
  try {
    adaptation = await (await call("v1/adaptations", task)).json();
  } catch (problem) {
    $("adapted").textContent = "";
    throw problem;
  }
  const milliseconds = (1000 * adaptation.seconds).toFixed(adaptation.seconds < 0.01 ? 1 : 0);
  const given = task.demonstrations.length;
  const read = adaptation.demonstrations_read < given ? ` The model read ${adaptation.demonstrations_read} of ${given} demonstrations.` : "";
  const known = adaptation.new ? "Adapted" : "Known already: adapted";
  $("adapted").textContent = `${known} in one forward pass of ${milliseconds} ms.${read}`;
  $("query").disabled = $("send").disabled = false;
  $("id").textContent = adaptation.id;
  $("keep").hidden = false;
  $("query").placeholder = "An input of the task";
  $("query").focus();
}

async function ask() {
  const query = $("query").value;
  if (!query.trim()) throw new Error("Type a query first.");
  const body = { inputs: [query] };
  const [adapted, bare] = await Promise.all([
    call("v1/generate", { ...body, adaptation: adaptation.id }),
    call("v1/generate", body),
  ]);
  const item = $("answer").content.firstElementChild.cloneNode(true);
  item.querySelector(".asked").textContent = query;
  item.querySelector(".with").textContent = (await adapted.json()).outputs[0];
  item.querySelector(".without").textContent = (await bare.json()).outputs[0];
  $("answers").prepend(item);
  $("query").select();
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
  if (health.model === "mini") {
    $("model").textContent += ", which knows a few hundred words and shows the method";
  }
  examples = EXAMPLES[health.model] ?? EXAMPLES.other;
  examples.forEach((example, index) => $("example").append(new Option(example.name, index)));
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
$("example").addEventListener("change", (event) => {
  if (event.target.value !== "") show(examples[Number(event.target.value)]);
});
$("add").addEventListener("click", () => addDemonstration().querySelector(".input").focus());
$("download").addEventListener("click", () => guarded($("download"), $("ask-problem"), download));

addDemonstration();
addDemonstration();
start().catch((problem) => {
  $("task-problem").textContent = problem.message;
});
