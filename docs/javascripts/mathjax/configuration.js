// MathJax 3.2.2, https://www.mathjax.org, Apache License 2.0 (the file LICENSE beside this one).
// `tex-svg.js` is the file `es5/tex-svg.js` of the npm package `mathjax`, unchanged: it holds the
// fonts, so that formulas are drawn without a network. SHA-256:
// d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"], ["$", "$"]],
    displayMath: [["\\[", "\\]"], ["$$", "$$"]],
    processEscapes: true,
    processEnvironments: true,
  },
  startup: {
    // What Markdown marks as mathematics, and the text cells of notebooks. Nothing else: a dollar
    // in code is a dollar.
    elements: [".arithmatex", ".jp-MarkdownOutput"],
  },
  // The menu offers renderers and readers that it would fetch from elsewhere.
  options: { enableMenu: false },
};
