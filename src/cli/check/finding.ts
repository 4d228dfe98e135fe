/** What a check came to. */

import { withoutControls } from '../exit.ts'

/**
 * `problem`: a worker would not start, or could not do its part. `warning`: it runs, and something may be lost or go
 * otherwise than meant. `ok` also stands for what is only told.
 */
type Level = 'ok' | 'warning' | 'problem'

export interface Finding {
  readonly check: string
  readonly level: Level
  /** one line; of a warning or a problem with the next step */
  readonly message: string
  /** what the program ends with when this is its first problem, after the table in exit.ts; 0 when it is none */
  readonly exitCode: number
}

/** No check takes longer; one that does is a problem itself. */
const LIMIT_MS = 10_000

function makeFinding(level: Level, check: string, message: string, exitCode: number): Finding {
  return { check, level, message: withoutControls(message.trim().replace(/\s*\n\s*/g, '; ')), exitCode }
}

export function makeOk(check: string, message: string): Finding {
  return makeFinding('ok', check, message, 0)
}

export function makeWarning(check: string, message: string): Finding {
  return makeFinding('warning', check, message, 0)
}

export function makeProblem(check: string, exitCode: number, message: string): Finding {
  return makeFinding('problem', check, message, exitCode)
}

/** Waits for a check no longer than its time. What it still does then ends with the program. */
export async function withinTime<T>(work: Promise<T>, late: () => T, limitMs = LIMIT_MS): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const limit = new Promise<T>((resolve) => {
    timer = setTimeout(() => resolve(late()), limitMs)
  })
  return Promise.race([work, limit]).finally(() => clearTimeout(timer))
}

export function lateMessage(what: string): string {
  return `${what} did not answer within ${LIMIT_MS / 1000} s`
}
