// A button in the corner of each block of code that copies it, without the prompts and the output of a session.
document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("div.highlight")) {
    const code = block.querySelector("pre");
    if (!code || !navigator.clipboard) continue;
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.title = "Copy";
    button.setAttribute("aria-label", "Copy this code");
    button.textContent = "⧉";
    button.addEventListener("click", async () => {
      const lines = code.innerText.replace(/\n$/, "").split("\n");
      const session = lines.filter((line) => /^(>>>|\.\.\.)( |$)/.test(line));
      const text = session.length ? session.map((line) => line.slice(4)) : lines.map((line) => line.replace(/^\$ /, ""));
      await navigator.clipboard.writeText(text.join("\n"));
      button.textContent = "✓";
      setTimeout(() => (button.textContent = "⧉"), 1500);
    });
    block.append(button);
  }
});
