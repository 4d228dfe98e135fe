import { expect, test } from 'vitest'
import { type Chart, drawChart, MIN_COLUMNS } from '../../../src/cli/demo/chart.ts'

const YEARS = [2018, 2018.5, 2019, 2019.5, 2020]

function draw(more: Partial<Chart> = {}): string[] {
  return drawChart({
    measured: YEARS.map((year) => ({ year, value: 400 + (year - 2018) * 5 })),
    forecast: [2020.5, 2021, 2021.5, 2022].map((year) => {
      const mean = 400 + (year - 2018) * 5
      return { year, mean, lower: mean - 2, upper: mean + 2 }
    }),
    unit: 'ppm',
    columns: 40,
    rows: 8,
    glyphs: 'ascii',
    paint: (text) => text,
    ...more,
  })
}

test('a rising line, its forecast inside its interval, numbers at the side and years below', () => {
  expect(draw()).toEqual([
    'ppm',
    '    |                                 ::',
    '420 +                            :::::oo',
    '    |                     :::ooooooooo:',
    '    |                  ::oooo:::::',
    '410 +                *ooo:::',
    '    |       *********',
    '    |   ****',
    '400 +***',
    '    ++--------+-------+--------+-------+',
    '    2018     2019    2020     2021  2022',
  ])
})

test('with Braille a line has eight times the dots, in the same space', () => {
  const lines = draw({ glyphs: 'braille' })
  expect(lines).toHaveLength(8 + 3)
  for (const line of lines) expect(line.length).toBeLessThanOrEqual(40)
  expect(lines.join('')).toMatch(/[\u2801-\u28ff]/)
  expect(lines.at(-2)).toMatch(/^ {4}└[─┴]+$/)
})

test('layers are painted, the forecast above all', () => {
  const painted = draw({ paint: (text, layer) => (layer === 'axis' ? text : `<${layer[0]}${text}>`) })
  expect(painted.join('\n').replace(/<[mfi]([^>]*)>/g, '$1')).toBe(draw().join('\n'))
  expect(painted[1]).toContain('<i::>')
  expect(painted[8]).toContain('<m***>')
})

test('it fits into every width from its least on, and has labels that do not touch', () => {
  for (let columns = MIN_COLUMNS; columns <= 130; columns++) {
    for (const glyphs of ['ascii', 'braille'] as const) {
      const lines = draw({ columns, glyphs })
      for (const line of lines) expect(line.length, line).toBeLessThanOrEqual(columns)
      expect(lines.at(-1)?.trim()).toMatch(/^\d{4}(\s+\d{4})*$/)
    }
  }
  expect(draw({ columns: 3 })).toEqual(draw({ columns: MIN_COLUMNS }))
})

test('series of one value, of equal ones, and without a forecast are drawn too', () => {
  for (const values of [[400], [400, 400, 400], [0], [0.001, 0.002], [-5, 5], [1e9, 2e9]]) {
    const measured = values.map((value, i) => ({ year: 2018 + i, value }))
    const lines = draw({ measured, forecast: [] })
    expect(lines).toHaveLength(11)
    expect(lines.join('')).toContain('*')
    expect(lines.join('')).not.toMatch(/NaN|Infinity|undefined/)
  }
})
