/** Rows as aligned text. */

const HEAD = ['', 'slots', 'median', 'min - max', 'unit', 'ratio', '']

/** Three digits that count, and all before the point. */
export function formatNumber(value) {
  const size = Math.abs(value)
  if (size >= 100) return Math.round(value).toLocaleString('en-US')
  return value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3)
}

function cellsOf({ name, slots, unit, median, min, max, ratio, ratio_to: other, values }) {
  const spread = values.length > 1 ? `${formatNumber(min)} - ${formatNumber(max)}` : ''
  const compared = ratio === undefined ? ['', ''] : [ratio.toFixed(2), `of ${other}`]
  return [`  ${name}`, slots === undefined ? '' : String(slots), formatNumber(median), spread, unit, ...compared]
}

/** A heading a row, how it was measured, and a line an entry. */
export function formatTable(rows) {
  const cells = rows.map(({ entries }) => entries.map(cellsOf))
  const widths = HEAD.map((title, i) => Math.max(title.length, ...cells.flat().map((line) => line[i].length)))
  const isNumber = [false, true, true, true, false, true, false]
  const format = (line) =>
    line
      .map((cell, i) => (isNumber[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join('  ')
      .trimEnd()
  const lines = [format(HEAD)]
  rows.forEach(({ row, title, how }, i) => {
    lines.push('', `${row}: ${title}`, ...how.map((line) => `  (${line})`), ...cells[i].map(format))
  })
  return lines.join('\n')
}
