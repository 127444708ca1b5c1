(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const mouse = matchMedia("(hover: hover)");
  const narrow = matchMedia("(max-width: 720px)");

  function layoutOf(figure) {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: value("--line"), zerolinecolor: value("--line"), linecolor: value("--line"), automargin: true };
    const own = figure.layout;
    const shapes = (own.shapes || []).map((shape) => ({ ...shape, label: { ...shape.label, font: { size: 11, color: value("--soft") } } }));
    return {
      ...own,
      shapes: shapes,
      xaxis: { ...axis, ...own.xaxis },
      yaxis: { ...axis, ...own.yaxis },
      margin: { l: 56, r: 14, t: 14, b: 46 },
      font: { family: "system-ui, sans-serif", size: narrow.matches ? 11 : 12, color: value("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", maxheight: 0.4 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--soft"), activecolor: value("--strong") },
      height: undefined,
      autosize: true,
    };
  }

  function draw(place) {
    const figure = figures[Number(place.dataset.figure)];
    place.dataset.drawn = "yes";
    const layout = layoutOf(figure);
    const data = structuredClone(figure.data);
    data.filter((trace) => trace.type === "heatmap").forEach((trace) => { trace.textfont = { color: layout.font.color }; });
    Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: mouse.matches && "hover" });
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => observer.observe(place));

  const redraw = () => places.filter((place) => place.dataset.drawn).forEach(draw);
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  addEventListener("beforeprint", () => places.forEach(draw));
})();
