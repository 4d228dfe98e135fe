/** Colours: on a terminal, unless NO_COLOR, FORCE_COLOR or `--color` say otherwise. */

import { styleText } from 'node:util'
import type { TerminalEnvironment } from '../config.ts'
import type { Tone } from '../report/log.ts'

/** What `--color` takes. */
export const COLOR_WORDS = ['auto', 'always', 'never'] as const
export type ColorWhen = (typeof COLOR_WORDS)[number]

const STYLES = { good: 'green', caution: 'yellow', bad: 'red', quiet: 'dim' } as const

const coloured = { stdout: false, stderr: false }

/** Until it is called nothing has a colour. */
export function decideColors(when: ColorWhen = 'auto', environment: TerminalEnvironment): void {
  for (const stream of ['stdout', 'stderr'] as const) {
    coloured[stream] = wantsColor(when, environment, process[stream].isTTY === true)
  }
}

export function wantsColor(when: ColorWhen, environment: TerminalEnvironment, isTerminal: boolean): boolean {
  if (when !== 'auto') return when === 'always'
  const { forceColor, noColor, isDumb } = environment
  return forceColor ?? (isTerminal && !noColor && !isDumb)
}

/** @param text without control characters from outside */
export function paint(stream: 'stdout' | 'stderr', tone: Tone, text: string): string {
  // Node would look at its own stdout and environment, too; that is decided.
  return coloured[stream] && text !== '' ? styleText(STYLES[tone], text, { validateStream: false }) : text
}
