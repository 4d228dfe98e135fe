import { EXIT } from './exit.ts'

export const STOP_SIGNALS = ['SIGTERM', 'SIGINT'] as const

/** TERM and INT before the worker is there to heed them. */
export interface EarlySignals {
  /** the first that came after `hold` */
  readonly signal: NodeJS.Signals | undefined
  /** From now on there are parts to be closed: the first signal is remembered, the second ends the program. */
  hold(exitCode: number): void
  /** The worker heeds them itself. */
  release(): void
}

/** Before anything was started a signal ends the program as it would have ended: with 0. */
export function heedEarlySignals(): EarlySignals {
  let exitCode: number | undefined
  let signal: NodeJS.Signals | undefined
  const onSignal = (name: NodeJS.Signals) => {
    if (exitCode === undefined || signal !== undefined) process.exit(exitCode ?? EXIT.ok)
    signal = name
  }
  for (const name of STOP_SIGNALS) process.on(name, onSignal)
  return {
    get signal() {
      return signal
    },
    hold: (code) => {
      exitCode = code
    },
    release: () => {
      for (const name of STOP_SIGNALS) process.off(name, onSignal)
    },
  }
}
