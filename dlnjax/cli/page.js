// Shows the flow of `eps_slider` at the time of `s_slider`: after a move of either, and at the start.
//
// The sources are described in `page.py`. Each of `parts`, and `lasso`, has one row per s; `x` and
// `at_s` are matrices with one column per row of `lines`. `names` are escaped.

const part = parts[eps_slider.value]
const i = s_slider.value
const [{eps, label}] = part.tags
const {s} = lasso.data
const count = lines.get_length()
const colors = lines.data.color
const at = (matrix, k) => Array.from({length: count}, (_, j) => matrix[k * count + j])
const curves = (matrix) =>
  Array.from({length: count}, (_, j) => Array.from(s, (_, k) => matrix[k * count + j]))
// The limit jumps: corners at each time.
const corners = Array.from(s).flatMap((time, k) => (k ? [time, time] : [time]))
const stairs = (row) => row.flatMap((value, k) => (k ? [row[k - 1], value] : [value]))
const {norm, nonzeros, loss, relative_gap} = part.data
const certified_gap = part.data.certified_gap ?? Array(s.length).fill(NaN)

if (cb_obj !== s_slider) {
  const has_limit = limit !== null && limit !== part
  lines.data = {
    ...lines.data,
    s: Array(count).fill(Array.from(s)),
    mean: curves(part.data.x),
    lasso: curves(lasso.data.x),
    at_s: eps ? curves(part.data.at_s) : curves(part.data.at_s).map(stairs),
    at_s_times: Array(count).fill(eps ? Array.from(s) : corners),
    limit: has_limit ? curves(limit.data.at_s).map(stairs) : Array(count).fill([]),
    limit_times: Array(count).fill(has_limit ? corners : []),
  }
  const clipped = (gap) => Array.from(gap, (value) => Math.max(value, floor))
  curve.data = {s, norm, nonzeros, loss, gap: clipped(relative_gap), bound: clipped(certified_gap)}
  titles.path.text = `averaged flow at ${label} (solid) over the lasso path (dashed)`
  titles.plateaus.text = `the flow at ${label}` + (has_limit ? ", dashed its limit ε → 0" : "")
  const bound = eps ? "dotted: certified bound; " : ""
  titles.gap.text = `relative gap at ${label}; ${bound}grey: the other ε`
  for (const key of ["norm", "nonzeros"]) titles[key].text = `averaged flow at ${label}; grey: lasso`
}

const mean = at(part.data.x, i)
const is_colored = (_, j) => lines.data.width[j] > 1
const chosen = mean.filter(is_colored)
marks.data = {s: chosen.map(() => s[i]), x: chosen, color: colors.filter(is_colored)}
const entry = (data, keys) => Object.fromEntries(keys.map((key) => [key, [data[key][i]]]))
point.data = entry(curve.data, ["s", "gap", "norm", "nonzeros", "loss"])
lasso_point.data = entry(lasso.data, ["norm", "nonzeros", "loss"])
for (const span of spans) span.location = s[i]

const number = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "–")
const row = (title, ...cells) =>
  `<tr><th>${title}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`
const both = (title, key) => row(title, number(part.data[key][i]), number(lasso.data[key][i]))
const active = (x) => new Set(x.flatMap((value, j) => (Math.abs(value) > least[j] ? [j] : [])))
const of_flow = active(mean)
const of_lasso = active(at(lasso.data.x, i))
const listed = (chosen, limit = 12) => {
  const largest = chosen.reverse() // the rows of `lines` end with the coloured ones
  const shown = largest.slice(0, limit).map((j) => `<b style="border-color:${colors[j]}">${names[j]}</b>`)
  if (largest.length > limit) shown.push(`${largest.length - limit} more`)
  return shown.length ? shown.join(", ") : "none"
}
const is_complete = !(nonzeros[i] + lasso.data.nonzeros[i] > of_flow.size + of_lasso.size)
readout.text =
  `<table>${row(`s = μ = ${number(s[i])}`, `flow, ${label}`, "lasso")}` +
  both("loss", "loss") +
  both("1-norm", "norm") +
  both("non-zero coordinates", "nonzeros") +
  row("relative gap", number(relative_gap[i]), "") +
  (eps ? row("certified to be below", number(certified_gap[i]), "") : "") +
  "</table>" +
  `<p>Active in both: ${listed([...of_flow].filter((j) => of_lasso.has(j)))}` +
  `<br>in the flow alone: ${listed([...of_flow].filter((j) => !of_lasso.has(j)))}` +
  `<br>in the lasso alone: ${listed([...of_lasso].filter((j) => !of_flow.has(j)))}` +
  (is_complete ? "</p>" : "<br>and some that are not drawn</p>")
