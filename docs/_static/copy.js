// A button in the corner of each block of code that copies it, without the prompts and the output of a session.
const icons = {
  copy: '<rect x="9" y="9" width="11" height="11" rx="2"/><path d="M5 15V6a2 2 0 0 1 2-2h8"/>',
  done: '<path d="M5 13l4 4L19 7"/>',
};
const icon = (name) =>
  `<svg viewBox="0 0 24 24" width="16" height="16" fill="none" stroke="currentColor" stroke-width="2">${icons[name]}</svg>`;

document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("div.highlight")) {
    const code = block.querySelector("pre");
    if (!code || !navigator.clipboard) continue;
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.title = "Copy";
    button.setAttribute("aria-label", "Copy this code");
    button.innerHTML = icon("copy");
    button.addEventListener("click", async () => {
      const lines = code.innerText.replace(/\n$/, "").split("\n");
      const session = lines.filter((line) => /^(>>>|\.\.\.)( |$)/.test(line));
      const text = session.length ? session.map((line) => line.slice(4)) : lines.map((line) => line.replace(/^\$ /, ""));
      await navigator.clipboard.writeText(text.join("\n"));
      button.innerHTML = icon("done");
      setTimeout(() => (button.innerHTML = icon("copy")), 1500);
    });
    block.append(button);
  }
});
