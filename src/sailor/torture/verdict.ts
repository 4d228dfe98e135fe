/** What a torture found, computed from the facts that it gathered. Pure. */

import type { TicketState } from '../../queue/queue.ts'

/** One put: what the producer was told, and where the broker has the job at the end. */
export interface PutFacts {
  /** `unknown`: the connection broke before the answer; the job may be there or not */
  readonly answer: 'accepted' | 'unknown'
  /** undefined where the producer was told no ticket */
  readonly state: TicketState | undefined
}

export interface DiskFacts {
  /** `damaged`: result.json is there, and it or a file that it lists is not as it should be */
  readonly result: 'none' | 'whole' | 'damaged'
  readonly damage?: string
  readonly state?: string | undefined
  readonly reason?: string | undefined
}

export interface JobFacts {
  readonly id: string
  readonly expects: 'sailor' | 'refused'
  readonly hasStatus: boolean
  readonly puts: readonly PutFacts[]
  readonly disk: DiskFacts
  /** what S3 holds of a complete job; undefined where there is no bucket */
  readonly s3: 'same' | 'missing' | 'different' | undefined
}

/** Something that must not be: which job or process, and what was seen. */
export interface Finding {
  readonly id: string
  readonly detail: string
}

export interface Facts {
  readonly jobs: readonly JobFacts[]
  /** tickets of the tube that are neither deleted nor buried, by the broker's own count */
  readonly leftOpen: number
  readonly publishedTwice: readonly Finding[]
  readonly ranTwice: readonly Finding[]
  readonly survivors: readonly Finding[]
  readonly lateKills: readonly Finding[]
  readonly leaks: readonly Finding[]
  /** workers that ended by themselves, and workers that did not end when they were asked to */
  readonly crashes: readonly Finding[]
  readonly stuck: readonly Finding[]
  /** eyes of the torture itself that saw less than there must have been */
  readonly blind: readonly Finding[]
}

export const BAD_ROWS = {
  unfinished: 'still in the queue',
  lost: 'lost',
  damaged: 'damaged',
  notOnS3: 'not on S3',
  publishedTwice: 'published twice',
  ranTwice: 'run twice at the same time',
  survivors: 'survivors',
  lateKills: 'late kills',
  leaks: 'leaked directories and files',
  crashes: 'crashed workers',
  stuck: 'workers that did not stop',
  blind: 'eyes of the torture that saw too little',
} as const

export type BadRow = keyof typeof BAD_ROWS

export interface Verdict {
  readonly clean: boolean
  /** jobs whose put was answered, at least once */
  readonly accepted: number
  /** jobs of which no put was answered */
  readonly unknown: number
  readonly complete: number
  readonly buried: number
  readonly bad: Readonly<Record<BadRow, readonly Finding[]>>
}

type Fate = { row: 'complete' | 'buried' | 'absent' } | { row: 'unfinished' | 'lost' | 'damaged'; detail: string }

export function computeVerdict(facts: Facts): Verdict {
  const { jobs, publishedTwice, ranTwice, survivors, lateKills, leaks, crashes, stuck, blind } = facts
  const fates = jobs.map((job) => ({ job, fate: fateOf(job) }))
  const count = (row: Fate['row']) => fates.filter(({ fate }) => fate.row === row).length
  const select = (row: Fate['row']): Finding[] =>
    fates.flatMap(({ job, fate }) =>
      fate.row === row && 'detail' in fate ? [{ id: job.id, detail: fate.detail }] : [],
    )
  const notOnS3 = jobs
    .filter(({ disk, s3 }) => disk.result === 'whole' && s3 !== undefined && s3 !== 'same')
    .map(({ id, s3 }) => ({ id, detail: `complete on disk; on S3 it is ${s3}` }))
  const bad = {
    unfinished: [...select('unfinished'), ...findUntold(facts)],
    lost: select('lost'),
    damaged: select('damaged'),
    notOnS3,
    publishedTwice,
    ranTwice,
    survivors,
    lateKills,
    leaks,
    crashes,
    stuck,
    blind,
  }
  const accepted = jobs.filter(isAccepted).length
  return {
    clean: Object.values(bad).every((findings) => findings.length === 0),
    accepted,
    unknown: jobs.length - accepted,
    complete: count('complete'),
    buried: count('buried'),
    bad,
  }
}

/** Jobs of puts that were not answered, and that the broker has all the same: they must come to an end like others. */
function findUntold({ jobs, leftOpen }: Facts): Finding[] {
  const told = jobs.flatMap(({ puts }) => puts).filter(({ state }) => isOpen(state)).length
  if (leftOpen <= told) return []
  return [{ id: 'unanswered puts', detail: `the broker still has ${leftOpen - told} more than were accepted` }]
}

function isOpen(state: TicketState | undefined): boolean {
  return state === 'ready' || state === 'delayed' || state === 'reserved'
}

function isAccepted({ puts }: JobFacts): boolean {
  return puts.some(({ answer }) => answer === 'accepted')
}

/** A job has one fate, however often it was put. */
function fateOf(job: JobFacts): Fate {
  const { disk, puts } = job
  const states = puts.flatMap(({ state }) => (state === undefined ? [] : [state]))
  const open = states.filter(isOpen)
  if (disk.result === 'damaged') return { row: 'damaged', detail: disk.damage ?? 'result.json is damaged' }
  if (open.length > 0) return { row: 'unfinished', detail: `the broker still has it ${open.join(', ')}` }
  if (disk.result === 'whole') return fateOfComplete(job)
  if (states.includes('buried')) return fateOfBuried(job)
  // Nobody was told that it was taken. Where it was, and ran, it stands on the disk.
  if (!isAccepted(job)) return { row: disk.state === 'failed' ? 'buried' : 'absent' }
  return { row: 'lost', detail: `the broker took it and has it no more; ${describeDisk(disk)}` }
}

function fateOfComplete({ disk, expects }: JobFacts): Fate {
  if (expects === 'refused') return { row: 'damaged', detail: 'it has a result, and could only be refused' }
  if (disk.state === 'complete') return { row: 'complete' }
  return { row: 'damaged', detail: `result.json is there and status.json says ${disk.state ?? 'nothing'}` }
}

function fateOfBuried({ disk, hasStatus }: JobFacts): Fate {
  if (!hasStatus) return { row: 'buried' }
  if (disk.state === 'failed' && disk.reason) return { row: 'buried' }
  return { row: 'lost', detail: `it is buried without a reason: ${describeDisk(disk)}` }
}

function describeDisk({ state, reason }: DiskFacts): string {
  if (state === undefined) return 'the disk has no status of it'
  return `its status is ${state}${reason === undefined ? '' : ` (${reason})`}`
}
