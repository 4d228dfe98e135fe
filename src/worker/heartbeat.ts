/** Keeps a reservation alive while its job is in our hands. */

import { QueueError, type Reservation } from '../queue/queue.ts'

export interface Heartbeat {
  /** Touches now. False when the reservation is no longer ours, or the broker cannot be asked. */
  isOurs(): Promise<boolean>
  stop(): void
}

/** Touches at a third of the TTR: two may go wrong before the reservation is lost. */
const TOUCHES_PER_TTR = 3
const MAX_INTERVAL_MS = 30_000
/** A TTR of one second leaves no room for two touches that a busy machine delays. */
const MIN_INTERVAL_MS = 200

/**
 * Starts to touch.
 * @param onLost called at most once, when the reservation is no longer ours
 */
export function startHeartbeat(reservation: Reservation, onLost: (detail: string) => void): Heartbeat {
  let lost = false
  let pending: Promise<boolean> | undefined
  const interval = (reservation.ttrSeconds * 1000) / (TOUCHES_PER_TTR + (reservation.ttrSeconds <= 2 ? 2 : 0))
  const timer = setInterval(() => void touch(), Math.max(MIN_INTERVAL_MS, Math.min(interval, MAX_INTERVAL_MS)))

  function touch(): Promise<boolean> {
    pending ??= touchOnce().finally(() => {
      pending = undefined
    })
    return pending
  }

  async function touchOnce(): Promise<boolean> {
    if (lost) return false
    try {
      await reservation.touch()
      return true
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      if (!lost) {
        lost = true
        clearInterval(timer)
        onLost(`the reservation was lost: ${error.message}`)
      }
      return false
    }
  }

  return {
    // A touch that is under way was sent before the question and proves nothing: ask again after it.
    isOurs: async () => {
      await pending
      return touch()
    },
    stop: () => clearInterval(timer),
  }
}
