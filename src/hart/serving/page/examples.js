"use strict";

// The bundled models know a few hundred words, so their examples are of these: one of each of several families of tasks.
// The others need a model of real text.
const EXAMPLES = {
  mini: [
    {
      name: "Only the fruits",
      definition: "You are given a list of words. Keep only the fruits, then end the answer with the word done.",
      demonstrations: [
        ["apple saw pear doctor lime", "apple pear lime done"],
        ["truck cherry grape black", "cherry grape done"],
      ],
      queries: ["plum lion hat banana", "dog grape saw lime"],
    },
    {
      name: "How many are no animals? (with choices)",
      definition: "You are given several words. Take everything that is not a kind of animal, then answer with their number.",
      demonstrations: [
        ["cow green rabbit purple farmer", "three"],
        ["horse hammer violin peach", "three"],
      ],
      queries: ["belt dog boat sheep", "frog judge violin pear sheep"],
      choices: "one, two, three, four",
    },
    {
      name: "The opposite of the last",
      definition: "In this task you see several adjectives. First replace each word by its opposite; second, go straight to the last.",
      demonstrations: [
        ["early clean full narrow", "wide"],
        ["wide early big", "small"],
      ],
      queries: ["loud dirty poor", "old dirty soft open"],
    },
    {
      name: "Who gave, and to whom",
      definition: "In this task you see a sentence about a gift. First write the giver and the receiver; second, put the word done behind.",
      demonstrations: [
        ["on Sunday Sara gave the purple apple to Paul in the garden", "Sara Paul done"],
        ["on Saturday Lily gave the purple peach to Anna in the church", "Lily Anna done"],
      ],
      queries: ["on Wednesday Mark gave the white shirt to Tom in the library"],
    },
    {
      name: "The first number above ten",
      definition: "The input is several numbers. Your job: find those larger than ten and after that give only the first of them.",
      demonstrations: [
        ["seven zero one nineteen eleven", "nineteen"],
        ["seven eleven five six fourteen one sixteen", "eleven"],
      ],
      queries: ["one eight fifteen seventeen twelve", "thirteen nineteen eight"],
    },
    {
      name: "Everybody's fruit, first and last exchanged",
      definition: "You are given people and the fruit each has. List all the fruit, then exchange the first and the last of them.",
      demonstrations: [
        ["Adam mango ; Tom fig ; Julia melon ; Mark cherry", "cherry fig melon mango"],
        ["Paul pear ; David fig ; Adam lime ; Sara melon", "melon fig lime pear"],
      ],
      queries: ["Nina berry ; Julia cherry ; Jack banana"],
    },
    {
      name: "The first in brackets",
      definition: "You are given a list with a part in brackets. Keep the enclosed part, then answer with the one that comes first.",
      demonstrations: [
        ["saw pliers ( purple owl apricot ) sweater", "purple"],
        ["car ( red plane rake ) boat berry", "red"],
      ],
      queries: ["harp frog ( pilot snake ) berry", "rake ( yellow melon ) baker hammer"],
    },
  ],
  other: [
    {
      name: "Is the review positive? (with choices)",
      definition: "Decide whether the review is positive or negative.",
      demonstrations: [
        ["The food was cold and the waiter rude.", "negative"],
        ["We will come back, everything was wonderful!", "positive"],
      ],
      queries: ["A long wait, but worth every minute.", "Never again."],
      choices: "positive, negative",
    },
    {
      name: "What is it about?",
      definition: "Name the topic of the sentence in one word.",
      demonstrations: [
        ["The goalkeeper saved a penalty in the last minute.", "sports"],
        ["The central bank raised its rates again.", "economy"],
      ],
      queries: ["The orchestra opened the season with Mahler."],
    },
    {
      name: "Where does it take place?",
      definition: "Write the name of the place that the sentence is about.",
      demonstrations: [
        ["The trains to Vienna were late all morning.", "Vienna"],
        ["Nobody in Lisbon had seen so much rain.", "Lisbon"],
      ],
      queries: ["A new bridge was opened in Istanbul yesterday."],
    },
  ],
};
// Which does not count.
EXAMPLES["mini-causal"] = EXAMPLES.mini.filter((example) => !example.name.startsWith("How many"));
