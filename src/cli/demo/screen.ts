/** How much can be shown, and in which colours. */

import { styleText } from 'node:util'
import { hasGlyphs, type TerminalEnvironment, terminalEnvironment } from '../../config.ts'
import { type ColorWhen, wantsColor } from '../color.ts'
import { withoutControls } from '../exit.ts'
import type { Told, Tone } from './story.ts'

export type Style = Parameters<typeof styleText>[0]

export interface Screen {
  readonly hasGlyphs: boolean
  /** undefined: lines may be of any length */
  columns(): number | undefined
  paint(style: Style, text: string): string
}

const USUAL_COLUMNS = 80

export function openScreen(
  choice: ColorWhen,
  stdout: { readonly isTTY?: boolean; readonly columns?: number } = process.stdout,
  environment: TerminalEnvironment = terminalEnvironment(),
  withGlyphs: boolean = hasGlyphs(),
): Screen {
  const isTerminal = stdout.isTTY === true
  const hasColor = wantsColor(choice, environment, isTerminal)
  return {
    hasGlyphs: withGlyphs,
    // A terminal that does not know its width says 0.
    columns: () => (isTerminal ? stdout.columns || USUAL_COLUMNS : undefined),
    paint: (style, text) => (hasColor && text !== '' ? styleText(style, text, { validateStream: false }) : text),
  }
}

const TONE_STYLES: Readonly<Record<Tone, Style | undefined>> = {
  plain: undefined,
  quiet: 'dim',
  good: 'green',
  warning: 'yellow',
  bad: 'red',
}
const SUBJECT_STYLES: readonly Style[] = ['cyan', 'magenta', 'blue']
/** Time, uuid and type of the built-in algorithms, each with the blanks after it. */
const TIME_COLUMNS = 9
const UUID_COLUMNS = 10
const TYPE_COLUMNS = 16
/** Below, the type is told only once for each job. */
const NARROW_COLUMNS = 72
const LEAST_TEXT_COLUMNS = 12

/** @returns makes one line of the live view; where the terminal is narrow, it goes on below itself */
export function makeEventWriter(screen: Screen): (told: Told, elapsedMs: number) => string {
  const styles = new Map<string, Style>()
  const styleOf = (type: string) => {
    const style = styles.get(type) ?? SUBJECT_STYLES[styles.size % SUBJECT_STYLES.length] ?? 'cyan'
    styles.set(type, style)
    return style
  }
  const seen = new Set<string>()
  return ({ uuid, type, text, tone }, elapsedMs) => {
    const columns = screen.columns()
    const isNarrow = columns !== undefined && columns < NARROW_COLUMNS
    const time = writeTime(elapsedMs).padStart(TIME_COLUMNS - 2)
    let head = `${screen.paint('dim', time)}  `
    let indent = TIME_COLUMNS
    let words = oneLine(text)
    if (uuid !== undefined && type !== undefined) {
      const subject = isNarrow
        ? oneLine(uuid).slice(0, 8)
        : `${oneLine(uuid).slice(0, 8)}  ${oneLine(type).padEnd(TYPE_COLUMNS - 2)}`
      head += `${screen.paint(styleOf(type), subject)}  `
      indent += isNarrow ? UUID_COLUMNS : UUID_COLUMNS + Math.max(TYPE_COLUMNS, type.length + 2)
      if (isNarrow && !seen.has(uuid)) words = `${oneLine(type)}: ${words}`
      seen.add(uuid)
      if (tone === 'good' || tone === 'bad') seen.delete(uuid)
    }
    const style = TONE_STYLES[tone]
    const lines = wrap(words, columns === undefined ? undefined : Math.max(LEAST_TEXT_COLUMNS, columns - indent))
    return lines
      .map(
        (line, i) => (i === 0 ? head : ' '.repeat(indent)) + (style === undefined ? line : screen.paint(style, line)),
      )
      .join('\n')
  }
}

function writeTime(ms: number): string {
  const seconds = ms / 1000
  return `${seconds < 1000 ? seconds.toFixed(1) : Math.round(seconds)} s`
}

function oneLine(text: string): string {
  return withoutControls(text.trim().replace(/\s+/g, ' '))
}

/** Between words; a word that is too long, an address perhaps, stays whole. */
export function wrap(text: string, columns: number | undefined): string[] {
  if (columns === undefined || text.length <= columns) return [text]
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > columns) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}
