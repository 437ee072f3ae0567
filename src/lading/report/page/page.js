(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 46rem)");
  const coarse = matchMedia("(pointer: coarse)");

  const look = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = (given) => ({
      ...given,
      gridcolor: colour("--line"),
      linecolor: colour("--line"),
      tickcolor: colour("--line"),
      tickfont: { color: colour("--quiet") },
      title: { ...given.title, font: { color: colour("--quiet"), size: 13 }, standoff: 8 },
      fixedrange: coarse.matches,
    });
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13 },
      hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--line"), font: { color: colour("--text") } },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--quiet") },
      dragmode: coarse.matches ? false : "zoom",
    };
  };

  const draw = () => {
    const drawn = Object.entries(figures).map(([name, figure]) => {
      const place = document.getElementById(name);
      const options = {
        responsive: true,
        displaylogo: false,
        displayModeBar: coarse.matches ? false : "hover",
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      };
      return place && Plotly.react(place, figure.data, look(figure.layout), options);
    });
    Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", String(drawn.length)));
  };

  for (const name of ["memory", "lanes", "steps"]) {
    const place = document.getElementById(name);
    if (place && !figures[name]) place.closest("section").hidden = true;
  }
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
