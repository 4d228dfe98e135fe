/** What happens in a worker, as values on one typed bus. Log and HTTP subscribe; later metrics and tracker queries. */

import type { Outcome, Settlement } from '../job/outcome.ts'

/** A job in the hands of a slot. */
export interface JobRef {
  readonly slot: number
  readonly uuid: string
  readonly type: string
  readonly ticket: string
  readonly tube: string
}

/** A job of which less may be known: its bytes were unreadable. */
export interface Subject {
  readonly slot: number
  readonly ticket: string
  readonly tube?: string
  readonly uuid?: string
  readonly type?: string
}

export type WorkerEvent =
  | {
      readonly event: 'worker_ready'
      readonly worker: string
      readonly slots: number
      readonly tubes: readonly string[]
      readonly broker: string
      readonly algorithms: readonly string[]
      readonly http: string | null
    }
  | {
      readonly event: 'worker_draining'
      readonly running: number
      readonly drainSeconds: number
      readonly cause: string
    }
  | { readonly event: 'worker_interrupting'; readonly running: number; readonly cause: string }
  | { readonly event: 'worker_quiet'; readonly running: number; readonly cause: string }
  /** no job is taken: this machine cannot do its part */
  | { readonly event: 'worker_paused'; readonly reason: string; readonly cause: string }
  | { readonly event: 'worker_resumed'; readonly seconds: number | null; readonly cause: string }
  /** what a dead worker left was ended and accounted for */
  | {
      readonly event: 'worker_recovered'
      readonly worker: string
      readonly attempts: number
      readonly survivors: readonly number[]
    }
  /** whether each run has a control group (cgroup v2): what the kernel keeps and counts for it, or why there are none */
  | { readonly event: 'worker_cgroup'; readonly controllers: readonly string[] | null; readonly why: string | null }
  | { readonly event: 'worker_problem'; readonly problem: string }
  | { readonly event: 'config_read'; readonly changed: readonly string[]; readonly needRestart: readonly string[] }
  | { readonly event: 'config_refused'; readonly problems: readonly string[] }
  | ({ readonly event: 'slot_state' } & {
      readonly slot: number
      readonly state: string
      readonly uuid?: string | undefined
      readonly type?: string | undefined
      readonly step?: string
      readonly seconds?: number
    })
  | { readonly event: 'worker_stopped'; readonly settled: number }
  | { readonly event: 'http_failed'; readonly error: string }
  | { readonly event: 'algorithms_read'; readonly algorithms: readonly string[] }
  | { readonly event: 'algorithm_problem'; readonly problem: string }
  /** this process is the broker now; `jobs` were in its journal, whose last `tornBytes` could not be read */
  | { readonly event: 'broker_started'; readonly broker: string; readonly jobs: number; readonly tornBytes: number }
  /** another process is the broker, and this one stands by */
  | { readonly event: 'broker_found'; readonly broker: string }
  | { readonly event: 'broker_lost'; readonly slot: number; readonly error: string }
  | { readonly event: 'broker_back'; readonly slot: number }
  /** the same for all slots at once: of several servers this one */
  | { readonly event: 'broker_lost'; readonly server: string; readonly error: string }
  | { readonly event: 'broker_back'; readonly server: string; readonly seconds: number }
  /** the connection broke while its job is in hand; it is being taken back */
  | (Subject & { readonly event: 'reservation_broken'; readonly error: string })
  | (Subject & { readonly event: 'reservation_regained'; readonly seconds: number })
  /** what its run comes to is discarded */
  | (Subject & { readonly event: 'reservation_lost'; readonly error: string })
  /** an attempt of the job is open elsewhere */
  | ({ readonly event: 'job_busy'; readonly worker: string } & JobRef)
  | { readonly event: 'outbox_length'; readonly length: number; readonly oldest: string | null }
  | { readonly event: 'outbox_retry'; readonly uuid: string; readonly tries: number; readonly error: string }
  | { readonly event: 'outbox_resumed'; readonly seconds: number }
  | { readonly event: 'outbox_failed'; readonly error: string }
  | ({
      readonly event: 'job_dequeued'
      readonly attempt: number
      readonly maxAttempts: number
      readonly directory: string
      readonly payloadJson: string
      readonly secondsLeft: number
      readonly priority: number
    } & JobRef)
  | (Subject & { readonly event: 'job_refused'; readonly outcome: Outcome; readonly error: string })
  | ({ readonly event: 'job_already_complete' } & JobRef)
  | ({ readonly event: 'run_started'; readonly attempt: number; readonly pid: number } & JobRef)
  | ({ readonly event: 'run_ending'; readonly attempt: number; readonly pid: number; readonly why: string } & JobRef)
  | ({
      readonly event: 'run_ended'
      readonly attempt: number
      readonly outcome: Outcome
      readonly exitCode: number | null
      readonly signal: string | undefined
      readonly durationSeconds: number
      readonly survivors: readonly number[]
      readonly error: string | null
      readonly stdout: string
    } & JobRef)
  | ({
      readonly event: 'job_published'
      readonly attempt: number
      readonly url: string
      readonly files: number
    } & JobRef)
  | (Subject & { readonly event: 'publish_failed'; readonly store: 'local'; readonly error: string })
  | ({
      readonly event: 'job_settled'
      readonly attempt: number
      readonly settlement: Settlement
      readonly durationSeconds: number
    } & JobRef)
  | (Subject & {
      readonly event: 'settle_failed'
      readonly action: Settlement['action']
      readonly error: string
      /** the job was no longer ours */
      readonly gone: boolean
    })
  | (Partial<JobRef> & {
      readonly event: 'slot_fault'
      readonly slot: number
      readonly error: string
      readonly retrySeconds: number
    })

export type Listener = (event: WorkerEvent) => void

export interface Bus {
  emit(event: WorkerEvent): void
  /** @returns a function that ends the subscription */
  subscribe(listener: Listener): () => void
}

/** A bus. A listener that throws must not harm the worker: its fault goes to `onListenerError`. */
export function makeBus(onListenerError: (error: unknown) => void): Bus {
  const listeners = new Set<Listener>()
  return {
    emit(event) {
      for (const listener of listeners) {
        try {
          listener(event)
        } catch (error) {
          onListenerError(error)
        }
      }
    },
    subscribe(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
}
