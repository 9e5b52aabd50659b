(() => {
  "use strict";
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  function colours() {
    const style = getComputedStyle(root);
    return (name) => style.getPropertyValue("--" + name).trim();
  }

  // Charts name their colours; the style sheet of the theme says what these are.
  function themed(spec, colour) {
    return JSON.parse(JSON.stringify(spec).replace(/"@(\w+)"/g, (_, name) => '"' + colour(name) + '"'));
  }

  function config(colour) {
    const font = getComputedStyle(document.body).fontFamily;
    const text = { labelColor: colour("soft"), titleColor: colour("soft"), labelFont: font, titleFont: font };
    return {
      background: null, font, view: { stroke: null },
      axis: {
        ...text, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 10,
        domainColor: colour("line"), tickColor: colour("line"), gridColor: colour("line"), gridOpacity: 0.7,
      },
      axisY: { domain: false, ticks: false, labelPadding: 6 },
      legend: { ...text, labelFontSize: 12, labelLimit: 150, symbolSize: 80 },
      range: { category: colour("classes").split(/\s+/) },
    };
  }

  let views = [];
  async function draw() {
    const colour = colours();
    views.forEach((view) => view.finalize());
    views = [];
    for (const [name, spec] of Object.entries(specs)) {
      const place = document.getElementById(name);
      try {
        const options = { renderer: "svg", actions: false, config: config(colour), tooltip: { theme: "custom" } };
        views.push(await vegaEmbed(place, themed(spec, colour), options));
      } catch (error) {
        place.textContent = "This chart could not be drawn: " + error.message;
      }
    }
  }

  const toggle = document.getElementById("theme");
  const label = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    draw();
  });
  prefersDark.addEventListener("change", () => { label(); draw(); });

  const table = document.getElementById("board");
  if (table) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const body = table.tBodies[0];
        const down = heading.getAttribute("aria-sort") === "ascending";
        const value = (row) => row.cells[column].dataset.value;
        const number = heading.classList.contains("number");
        const order = (a, b) => number
          ? Number(value(a)) - Number(value(b))
          : value(a).localeCompare(value(b), undefined, { numeric: true });
        body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  if (navigator.clipboard) {
    document.querySelectorAll(".code").forEach((box) => {
      const button = box.querySelector(".copy");
      button.hidden = false;
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(box.querySelector("code").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
    });
  }

  label();
  draw();
})();
