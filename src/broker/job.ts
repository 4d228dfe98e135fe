/** What the broker keeps of one job, and lists of jobs in the order in which they came. */

import type { Client, Tube } from './tube.ts'

/** `coming`: its number is given, its body is not here yet; nobody but its producer knows it. */
export type JobState = 'coming' | 'ready' | 'reserved' | 'delayed' | 'buried'

/** All times are milliseconds of the clock that the caller hands to Tubes. */
export class Job {
  readonly id: number
  readonly tube: Tube
  /** the bytes, one character each: a string takes a third of the memory of a small Buffer */
  body = ''
  priority: number
  delaySeconds: number
  readonly ttrSeconds: number
  readonly createdAt: number
  /** reserved: end of the TTR; delayed: when it becomes ready; buried: since when; else without meaning */
  deadlineAt: number
  state: JobState = 'coming'
  /** in the one heap that it is in */
  position = -1
  holder: Client | undefined = undefined
  reserves = 0
  timeouts = 0
  releases = 0
  buries = 0
  kicks = 0
  /** neighbours in the one JobList that it is in: buried ones of a tube, or reserved ones of a client */
  before: Job | undefined = undefined
  after: Job | undefined = undefined
  /** for the journal: the segment with its latest full record, and its neighbours in order of those records */
  segment = 0
  older: Job | undefined = undefined
  newer: Job | undefined = undefined

  constructor(
    id: number,
    tube: Tube,
    priority: number,
    delaySeconds: number,
    ttrSeconds: number,
    createdAt: number,
    deadlineAt = 0,
  ) {
    this.id = id
    this.tube = tube
    this.priority = priority
    this.delaySeconds = delaySeconds
    this.ttrSeconds = ttrSeconds
    this.createdAt = createdAt
    this.deadlineAt = deadlineAt
  }
}

export function isMoreUrgent(a: Job, b: Job): boolean {
  return a.priority < b.priority || (a.priority === b.priority && a.id < b.id)
}

export function isDueBefore(a: Job, b: Job): boolean {
  return a.deadlineAt < b.deadlineAt || (a.deadlineAt === b.deadlineAt && a.id < b.id)
}

/** First come, first listed; a job is in one list at most. */
export class JobList {
  #first: Job | undefined
  #last: Job | undefined
  #size = 0

  get first(): Job | undefined {
    return this.#first
  }

  get size(): number {
    return this.#size
  }

  append(job: Job): void {
    job.before = this.#last
    if (this.#last === undefined) this.#first = job
    else this.#last.after = job
    this.#last = job
    this.#size++
  }

  remove(job: Job): void {
    if (job.before === undefined) this.#first = job.after
    else job.before.after = job.after
    if (job.after === undefined) this.#last = job.before
    else job.after.before = job.before
    job.before = undefined
    job.after = undefined
    this.#size--
  }
}
