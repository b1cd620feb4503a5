// Draws the figures. Without it, or where it fails, the tables beside them stay open.
(async () => {
  "use strict";
  const root = document.documentElement;
  const tables = document.querySelectorAll("details.numbers");
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function template() {
    const [ink, grid, line] = dark.matches ? ["#c9ced6", "#2b3038", "#4a515c"] : ["#3d444e", "#e8ebef", "#b9c0ca"];
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: line, tickcolor: line, automargin: true, exponentformat: "e", title: { standoff: 8, font: { size: 13 } } };
    return {
      layout: {
        font: { color: ink, size: 12.5, family: getComputedStyle(document.body).fontFamily },
        colorway: dark.matches
          ? ["#6ea8f5", "#f09a5b", "#5cc29a", "#d68fd6", "#c9b458", "#8f9bb0"]
          : ["#1f6bd0", "#d1601a", "#16906a", "#9c4fa8", "#947a10", "#6b7688"],
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis,
        yaxis: axis,
        legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
        hoverlabel: { align: "left" },
        colorscale: {},
        modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
      },
    };
  }

  async function load() {
    const packed = document.getElementById("plotly");
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    packed.remove();
    document.head.append(script);
  }

  for (const table of tables) table.open = false;
  try {
    await load();
    const touch = matchMedia("(pointer: coarse)").matches;
    const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
    const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: buttons };
    for (const plot of plots) {
      const { data, layout } = JSON.parse(plot.closest("figure").querySelector("script").textContent);
      // A finger that scrolls the page must not draw a zoom box on the way.
      await Plotly.newPlot(plot, data, { ...layout, template: template(), dragmode: touch ? false : "zoom" }, config);
      await new Promise((resolve) => setTimeout(resolve));
    }
    dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, { template: template() })));
    root.dataset.drawn = plots.length;
  } catch (error) {
    root.classList.add("failed");
    for (const table of tables) table.open = true;
    console.error("the figures cannot be drawn:", error);
  }
})();
