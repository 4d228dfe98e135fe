/** What happens in the worker, in words for people who see it for the first time: a line of its JSON log each. Pure. */

export type Tone = 'plain' | 'quiet' | 'good' | 'warning' | 'bad'

/** One line of the live view. */
export interface Told {
  readonly uuid: string | undefined
  readonly type: string | undefined
  readonly text: string
  readonly tone: Tone
}

/** A line of the worker's log, as far as it is known here; the rest is told in the log's own words. */
interface LogLine {
  readonly event?: string
  readonly level?: string
  readonly msg?: string
  readonly uuid?: string
  readonly type?: string
  readonly attempt?: number
  readonly max_attempts?: number
  readonly duration_seconds?: number
  readonly signal?: string
  readonly outcome?: string
  readonly error?: string | null
  readonly survivors?: readonly number[]
  readonly why?: string
  readonly files?: number
  readonly settlement?: { readonly action?: string; readonly delaySeconds?: number; readonly reason?: string }
  readonly running?: number
  readonly slots?: number
  readonly http?: string | null
  readonly broker?: string
}

export interface Heard extends Told {
  readonly event: string | undefined
}

/** @returns undefined for what only operators want to know */
export function tellLogLine(text: string): Heard | undefined {
  const line = parseLine(text)
  if (line === undefined) return { event: undefined, uuid: undefined, type: undefined, text, tone: 'plain' }
  const told = tellEvent(line)
  return told === undefined ? undefined : { event: line.event, uuid: line.uuid, type: line.type, ...told }
}

function parseLine(text: string): LogLine | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? value : undefined
  } catch {
    return undefined
  }
}

type Words = Pick<Told, 'text' | 'tone'>

function tellEvent(line: LogLine): Words | undefined {
  switch (line.event) {
    case 'broker_started':
      return { text: `the broker listens on ${line.broker}`, tone: 'quiet' }
    case 'worker_ready':
      return { text: `the worker takes ${line.slots} jobs at a time; results at ${line.http}`, tone: 'quiet' }
    case 'worker_draining':
    case 'worker_cgroup':
    // A job of such an algorithm is told of when it is refused.
    case 'algorithm_problem':
      return undefined
    case 'worker_interrupting':
      return line.running === 0 ? undefined : { text: 'what runs is ended', tone: 'quiet' }
    case 'worker_stopped':
      return { text: 'the worker has stopped', tone: 'quiet' }
    case 'job_dequeued':
      return { text: `attempt ${line.attempt} of ${line.max_attempts} begins`, tone: 'plain' }
    case 'job_refused':
      return { text: `cannot be run, set aside: ${line.error}`, tone: 'bad' }
    case 'job_already_complete':
      return { text: 'has a result already: not run again', tone: 'good' }
    case 'run_ending':
      return { text: whyEnding(line), tone: 'warning' }
    case 'run_ended':
      return howEnded(line)
    case 'job_published':
      return { text: `published${countFiles(line.files ?? 0)}`, tone: 'plain' }
    case 'job_settled':
      return howSettled(line)
    default:
      return { text: line.msg ?? String(line.event), tone: TONES[line.level ?? ''] ?? 'plain' }
  }
}

const TONES: Readonly<Record<string, Tone>> = { debug: 'quiet', info: 'plain', warn: 'warning', error: 'bad' }

function whyEnding({ why }: LogLine): string {
  if (why === 'timed_out') return 'time is up (TTR + GRACE_TIME): it is ended'
  return why === 'interrupted' ? 'it is ended: the worker stops' : `it is ended (${why})`
}

function howEnded(line: LogLine): Words {
  const after = `after ${line.duration_seconds?.toFixed(1)} s`
  const survivors = line.survivors?.length ? `; STILL ALIVE: ${line.survivors.join(' ')}` : ''
  switch (line.outcome) {
    case 'success':
      return { text: `attempt ${line.attempt} succeeded ${after}${survivors}`, tone: 'plain' }
    case 'timed_out':
      return {
        text: `attempt ${line.attempt} ended by ${line.signal ?? 'force'} ${after}${survivors}`,
        tone: 'warning',
      }
    case 'interrupted':
      return { text: `attempt ${line.attempt} broken off ${after}: it does not count${survivors}`, tone: 'warning' }
    default:
      return { text: `attempt ${line.attempt} failed with ${line.error} ${after}${survivors}`, tone: 'warning' }
  }
}

function countFiles(count: number): string {
  return count === 0 ? '' : `, with ${count} file${count === 1 ? '' : 's'}`
}

function howSettled({ settlement, msg }: LogLine): Words {
  switch (settlement?.action) {
    case 'delete':
      return { text: 'complete', tone: 'good' }
    case 'release':
      return settlement.delaySeconds === 0
        ? { text: 'back in the queue', tone: 'warning' }
        : { text: `back in the queue, tried again in ${settlement.delaySeconds} s`, tone: 'warning' }
    case 'bury':
      return { text: `failed for good, set aside: ${settlement.reason}`, tone: 'bad' }
    default:
      return { text: msg ?? 'settled', tone: 'plain' }
  }
}
