/** Whether a worker's slots may take jobs now, and why not. */

import { setTimeout as sleep } from 'node:timers/promises'

/** `quiet`: asked for by a signal. `fault`: this machine cannot do its part (a full disk). Both may hold at once. */
export type Obstacle = 'quiet' | 'fault'

export interface Gate {
  readonly isOpen: boolean
  /** why it is closed, one line; undefined while it is open */
  readonly reason: string | undefined
  has(obstacle: Obstacle): boolean
  close(obstacle: Obstacle, reason: string): void
  /** Takes one obstacle away. */
  clear(obstacle: Obstacle): void
  /** Settles when the gate is open, or after `ms`. */
  wait(ms: number, signal: AbortSignal): Promise<void>
}

/** @param onClose called when it was open: slots that wait for a job are to leave */
export function makeGate(onClose: () => void): Gate {
  const reasons = new Map<Obstacle, string>()
  let opened = new AbortController()
  return {
    get isOpen() {
      return reasons.size === 0
    },
    get reason() {
      return reasons.get('fault') ?? reasons.get('quiet')
    },
    has: (obstacle) => reasons.has(obstacle),
    close(obstacle, reason) {
      const wasOpen = reasons.size === 0
      reasons.set(obstacle, reason)
      if (wasOpen) onClose()
    },
    clear(obstacle) {
      if (!reasons.delete(obstacle) || reasons.size > 0) return
      opened.abort()
      opened = new AbortController()
    },
    wait: async (ms, signal) => {
      if (reasons.size === 0) return
      await sleep(ms, undefined, { signal: AbortSignal.any([signal, opened.signal]) }).catch(() => undefined)
    },
  }
}
