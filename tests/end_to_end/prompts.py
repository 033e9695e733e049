"""Twenty prompts of different kinds, written for these tests."""

PROMPTS = [
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village at the edge of a forest, there lived",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Question: What is the largest planet in the solar system?\nAnswer:",
    "List three reasons to keep a diary:\n1.",
    "The quick brown fox jumps over the lazy dog. The lazy dog",
    "Translate to French: Good morning, my friend.\nFrench:",
    "SELECT name, age FROM users WHERE",
    "In 1969, two astronauts",
    "The recipe needs two eggs, a cup of flour and",
    "<html>\n  <head>\n    <title>",
    "She opened the letter with shaking hands. It said:",
    "If a train leaves at 9:15 and arrives at 11:45, the journey takes",
    "Photosynthesis is the process by which",
    "Breaking news: scientists have discovered",
    "import numpy as np\n\nx = np.",
    "The three branches of government are",
    "To be, or not to be, that is",
]
