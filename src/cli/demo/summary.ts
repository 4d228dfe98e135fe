/** The forecast that the demo had made, for the terminal: its main figures, a plot, and where all of it is. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { withoutControls } from '../exit.ts'
import { drawChart, type Layer, type Measured } from './chart.ts'
import { type Screen, type Style, wrap } from './screen.ts'

export const SAMPLE = 'co2'
const SAMPLE_FILE = join(import.meta.dirname, '..', '..', '..', 'algorithms', 'samples', `${SAMPLE}.json`)

/** What is read here of the document that `qproducer --wait` prints. */
export interface ForecastDocument {
  readonly uuid: string
  readonly timestamp: string
  readonly attempt: number
  readonly duration_seconds: number
  readonly result: {
    readonly title: string
    readonly unit: string
    readonly n: number
    readonly first: string
    readonly last: string
    readonly ets: string
    readonly method: string
    readonly holdout: { readonly n: number; readonly mae: number; readonly seasonal_naive: { readonly mae: number } }
    readonly forecast: readonly Row[]
  }
  readonly files: readonly { readonly name: string }[]
}

interface Row {
  readonly date: string
  readonly mean: number
  readonly lower_95: number
  readonly upper_95: number
}

const USUAL_COLUMNS = 80
const MOST_COLUMNS = 100
const LEAST_COLUMNS = 40
const LAYER_STYLES: Readonly<Record<Layer, Style | undefined>> = {
  measured: undefined,
  forecast: ['bold', 'cyan'],
  interval: 'cyan',
  axis: 'dim',
}

/** @param text what `qproducer --wait` printed */
export function parseForecast(text: string): ForecastDocument {
  const parse = (_key: string, value: unknown) => (typeof value === 'string' ? withoutControls(value) : value)
  return JSON.parse(text, parse) as ForecastDocument
}

/** @param url of the document, as `qproducer` told it */
export async function writeForecast(document: ForecastDocument, url: string, screen: Screen): Promise<string> {
  const { result, files } = document
  const columns = screen.columns()
  const title = `${result.title}: the next ${result.forecast.length} months`
  const lines = [
    ...wrap(title, columns).map((line) => screen.paint('bold', line)),
    '',
    ...(await plot(document, screen)),
    '',
    ...writeFigures(document, screen),
    '',
    'The result, with its timestamp:',
    `  curl ${url}`,
    ...files
      .filter(({ name }) => name.endsWith('.svg'))
      .flatMap(({ name }) => ['The plot, for a browser:', `  ${url}/${name}`]),
    '',
  ].join('\n')
  return screen.hasGlyphs ? lines : lines.replaceAll('₂', '2')
}

async function plot({ result }: ForecastDocument, screen: Screen): Promise<string[]> {
  const columns = Math.max(LEAST_COLUMNS, Math.min(MOST_COLUMNS, screen.columns() ?? USUAL_COLUMNS))
  const last = yearOf(result.last)
  // About two months in the width of a character.
  const years = Math.round((columns - 6) / 6 - result.forecast.length / 12)
  const measured = (await readSample()).filter(({ year }) => year > last - years)
  const paint = (text: string, layer: Layer) => {
    const style = LAYER_STYLES[layer]
    return style === undefined ? text : screen.paint(style, text)
  }
  const lines = drawChart({
    measured,
    forecast: result.forecast.map((row) => ({
      year: yearOf(row.date),
      mean: row.mean,
      lower: row.lower_95,
      upper: row.upper_95,
    })),
    unit: result.unit,
    columns,
    rows: columns < 60 ? 11 : 14,
    glyphs: screen.hasGlyphs ? 'braille' : 'ascii',
    paint,
  })
  const marks = screen.hasGlyphs ? ['⠤⠒', '⠤⠒', '⠅⠅'] : ['*', 'o', ':']
  const legend = (['measured', 'forecast', 'interval'] as const).map(
    (layer, i) => `${paint(marks[i] ?? '', layer)} ${layer === 'interval' ? '95 % interval' : layer}`,
  )
  return [...lines, `    ${legend.join('   ')}`]
}

/** The series that the algorithm had; the result holds only what was made of it. */
async function readSample(): Promise<Measured[]> {
  const { series } = JSON.parse(await readFile(SAMPLE_FILE, 'utf8')) as {
    series: readonly { date: string; value: number | null }[]
  }
  return series
    .filter((point): point is { date: string; value: number } => point.value !== null)
    .map(({ date, value }) => ({ year: yearOf(date), value }))
}

function yearOf(date: string): number {
  const [year, month] = date.split('-')
  return Number(year) + (Number(month) - 1) / 12
}

function writeFigures({ result, ...document }: ForecastDocument, screen: Screen): string[] {
  const { unit, holdout, forecast } = result
  const describe = ({ date, mean, lower_95: lower, upper_95: upper }: Row) =>
    `${mean.toFixed(1)} ${unit} (95 %: ${lower.toFixed(1)} to ${upper.toFixed(1)}) in ${date.slice(0, 7)}`
  const rows: [string, string][] = [
    ['series', `${result.n} values, ${result.first.slice(0, 7)} to ${result.last.slice(0, 7)}`],
    ['method', `${result.method.replaceAll('_', ' ')}, ${result.ets}`],
    ...[forecast[0], forecast.at(-1)].flatMap((row, i): [string, string][] =>
      row === undefined ? [] : [[i === 0 ? 'next' : 'last', describe(row)]],
    ),
    [
      'check',
      `off by ${holdout.mae.toFixed(1)} ${unit} over the last ${holdout.n} months (last year again: ${holdout.seasonal_naive.mae.toFixed(1)} ${unit})`,
    ],
    ['run', `${document.duration_seconds.toFixed(1)} s, attempt ${document.attempt}, ${document.timestamp}`],
  ]
  const columns = screen.columns()
  return rows.flatMap(([name, text]) =>
    wrap(text, columns === undefined ? undefined : columns - 10).map(
      (line, i) => `  ${screen.paint('dim', (i === 0 ? name : '').padEnd(8))}${line}`,
    ),
  )
}
