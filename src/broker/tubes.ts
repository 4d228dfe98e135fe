/**
 * The state of the broker: all jobs, tubes and clients, and what each command does to them. Pure: no socket, no file,
 * no clock. Every method takes the time, in milliseconds of any clock that does not go back.
 *
 *     coming --finish--> ready <--timeout, release, kick, lost client-- reserved
 *                          |  \---------reserve, reserveJob----------->    |  |
 *                       (delay)                                            |  bury
 *                        delayed --its time, kick--> ready                 |  v
 *                           ^--------release with delay--------------------' buried --kick--> ready
 *
 * Every state but `coming` can be deleted, `reserved` by its holder alone.
 *
 * There is no timer per job. Tubes know when the first of their delayed jobs or the end of their pause is due, clients
 * when the first of their TTRs or the end of their waiting; one heap of both says when `tick` has something to do.
 *
 * Between two calls no tube that is not paused has both a ready job and a waiting client.
 */

import { Heap } from './heap.ts'
import { Job } from './job.ts'
import { Client, Tube, URGENT_BELOW } from './tube.ts'

/** A client that waits is told when the TTR of a job that it holds has less than this left. */
const MARGIN_MS = 1000
/** of a job without its body, as measured with some 100000 of them */
const JOB_BYTES = 512
const NEVER = Number.POSITIVE_INFINITY

/** What is noted of a job, after it has happened. A holder that is lost changes nothing that would be kept. */
export type Change = 'put' | 'reserve' | 'timeout' | 'release' | 'bury' | 'kick' | 'delete'

/** What a client that reserves is told. */
export type Reserved = Job | 'TIMED_OUT' | 'DEADLINE_SOON'

export interface Witness {
  /** Called once for each `reserve`, at once or later. */
  answer(client: Client, outcome: Reserved): void
  /** Called before anybody learns of the change. */
  note(change: Change, job: Job): void
}

export class Tubes {
  readonly #witness: Witness
  readonly #jobs = new Map<number, Job>()
  readonly #names = new Map<string, Tube>()
  /** in beanstalkd's order: the last one takes the place of one that is forgotten */
  readonly #list: Tube[] = []
  readonly #alarms = new Heap<Tube | Client>((a, b) => a.wakeAt < b.wakeAt)
  readonly #default: Tube
  #nextId = 1
  #bodyBytes = 0
  readonly counts = {
    urgent: 0,
    ready: 0,
    reserved: 0,
    delayed: 0,
    buried: 0,
    totalJobs: 0,
    timeouts: 0,
    clients: 0,
    totalClients: 0,
    producers: 0,
    workers: 0,
    waiting: 0,
  }

  constructor(witness: Witness) {
    this.#witness = witness
    this.#default = this.#findOrMake('default')
    this.#default.references++
  }

  get list(): readonly Tube[] {
    return this.#list
  }

  get jobCount(): number {
    return this.#jobs.size
  }

  /** What the jobs take of the process's memory, nearly. */
  get memoryBytes(): number {
    return this.#bodyBytes + this.#jobs.size * JOB_BYTES
  }

  /** the number of the next job */
  get nextId(): number {
    return this.#nextId
  }

  /** When `tick` is due; Infinity when nothing is to come. */
  get wakeAt(): number {
    return this.#alarms.peek()?.wakeAt ?? NEVER
  }

  findTube(name: string): Tube | undefined {
    return this.#names.get(name)
  }

  findJob(id: number): Job | undefined {
    return this.#jobs.get(id)
  }

  /** Does all that is due. To be called before each command, too: a command must not meet a job that is overdue. */
  tick(now: number): void {
    for (;;) {
      const next = this.#alarms.peek()
      if (next === undefined || next.wakeAt > now) return
      if (next instanceof Tube) this.#wakeTube(next, now)
      else this.#wakeClient(next, now)
    }
  }

  // Clients

  connect(): Client {
    const client = new Client(this.#default)
    this.#default.using++
    this.#default.watching++
    this.#default.references += 2
    this.counts.clients++
    this.counts.totalClients++
    return client
  }

  /** Its reserved jobs become ready again, in the order in which it reserved them. */
  disconnect(client: Client, now: number): void {
    this.abandonPut(client)
    this.#stopWaiting(client)
    for (let job = client.reserved.first; job !== undefined; job = client.reserved.first) {
      this.#takeFromHolder(job)
      this.#enter(job, 0, now)
    }
    this.counts.clients--
    if (client.isProducer) this.counts.producers--
    if (client.isWorker) this.counts.workers--
    while (client.watched.length > 0) this.#unwatch(client, 0)
    client.used.using--
    this.#release(client.used)
    this.#setAlarm(client, NEVER)
  }

  use(client: Client, name: string): void {
    const tube = this.#findOrMake(name)
    tube.using++
    tube.references++
    client.used.using--
    this.#release(client.used)
    client.used = tube
  }

  watch(client: Client, name: string): number {
    const tube = this.#findOrMake(name)
    if (!client.watched.includes(tube)) {
      client.watched.push(tube)
      tube.watching++
      tube.references++
    }
    return client.watched.length
  }

  /** How many tubes it watches now; undefined when this is the only one. */
  ignore(client: Client, name: string): number | undefined {
    const place = client.watched.findIndex((tube) => tube.name === name)
    if (place >= 0) {
      if (client.watched.length < 2) return undefined
      this.#unwatch(client, place)
    }
    return client.watched.length
  }

  #unwatch(client: Client, place: number): void {
    const tube = client.watched[place] as Tube
    const last = client.watched.pop() as Tube
    if (last !== tube) client.watched[place] = last
    tube.watching--
    this.#release(tube)
  }

  // Jobs

  /** The command of a put has come: the job gets its number, its tube and its age now, its body later. */
  beginPut(client: Client, priority: number, delaySeconds: number, ttrSeconds: number, now: number): Job {
    if (!client.isProducer) {
      client.isProducer = true
      this.counts.producers++
    }
    client.used.references++
    client.coming = new Job(this.#nextId++, client.used, priority, delaySeconds, Math.max(1, ttrSeconds), now)
    return client.coming
  }

  finishPut(client: Client, body: string, now: number): Job {
    const job = client.coming
    if (job === undefined) throw new Error('no put was begun')
    client.coming = undefined
    job.body = body
    this.#bodyBytes += body.length
    this.#jobs.set(job.id, job)
    this.counts.totalJobs++
    job.tube.totalJobs++
    this.#enter(job, job.delaySeconds, now, 'put')
    return job
  }

  abandonPut(client: Client): void {
    if (client.coming === undefined) return
    this.#release(client.coming.tube)
    client.coming = undefined
  }

  /** Takes in a job that was kept over a restart, whose changes are still being read; `restore` gives it its place. */
  admit(job: Job): void {
    this.#bodyBytes += job.body.length
    this.#jobs.set(job.id, job)
    this.reserveIds(job.id + 1)
  }

  /** For a job that is admitted: the tube that it counts in from now on. */
  tubeOf(name: string): Tube {
    const tube = this.#findOrMake(name)
    tube.references++
    return tube
  }

  /** An admitted job turns out to have been deleted. */
  forget(job: Job): void {
    this.#bodyBytes -= job.body.length
    this.#jobs.delete(job.id)
    this.#release(job.tube)
  }

  /** To be called for each admitted job; for buried ones in the order of their burials. */
  restore(job: Job, now: number): void {
    if (job.state === 'buried') this.#lay(job)
    else if (job.state === 'delayed' && job.deadlineAt > now) this.#defer(job)
    else this.#offer(job)
  }

  /** No number below this is given again. */
  reserveIds(nextId: number): void {
    if (nextId > this.#nextId) this.#nextId = nextId
  }

  /** Answered through the witness. @param timeoutSeconds undefined: for ever */
  reserve(client: Client, timeoutSeconds: number | undefined, now: number): void {
    this.#makeWorker(client)
    if (this.#isDeadlineSoon(client, now) && !client.watched.some((tube) => tube.ready.size > 0)) {
      this.#witness.answer(client, 'DEADLINE_SOON')
      return
    }
    client.isWaiting = true
    client.waitsUntil = timeoutSeconds === undefined ? NEVER : now + timeoutSeconds * 1000
    this.counts.waiting++
    for (const tube of client.watched) tube.waiting.add(client)
    this.#serve(client.watched, now)
    if (!client.isWaiting) return
    this.#scheduleClient(client)
    if (client.wakeAt <= now) this.#wakeClient(client, now)
  }

  /** Ends the waiting of a client that has hung up on its side. */
  stopWaiting(client: Client): void {
    if (!client.isWaiting) return
    this.#stopWaiting(client)
    this.#witness.answer(client, 'TIMED_OUT')
  }

  reserveJob(client: Client, id: number, now: number): Job | undefined {
    const job = this.#jobs.get(id)
    if (job === undefined || job.state === 'reserved') return undefined
    this.#takeOut(job)
    this.#makeWorker(client)
    this.#hold(client, job, now)
    return job
  }

  delete(client: Client, id: number): boolean {
    const job = this.#jobs.get(id)
    if (job === undefined || (job.state === 'reserved' && job.holder !== client)) return false
    this.#takeOut(job)
    job.tube.deletes++
    this.#bodyBytes -= job.body.length
    this.#jobs.delete(id)
    this.#witness.note('delete', job)
    this.#release(job.tube)
    return true
  }

  release(client: Client, id: number, priority: number, delaySeconds: number, now: number): boolean {
    const job = this.#heldBy(client, id)
    if (job === undefined) return false
    this.#takeFromHolder(job)
    job.priority = priority
    job.delaySeconds = delaySeconds
    job.releases++
    this.#enter(job, delaySeconds, now, 'release')
    return true
  }

  bury(client: Client, id: number, priority: number, now: number): boolean {
    const job = this.#heldBy(client, id)
    if (job === undefined) return false
    this.#takeFromHolder(job)
    job.priority = priority
    job.buries++
    job.deadlineAt = now
    this.#lay(job)
    this.#witness.note('bury', job)
    return true
  }

  touch(client: Client, id: number, now: number): boolean {
    const job = this.#heldBy(client, id)
    if (job === undefined) return false
    job.deadlineAt = now + job.ttrSeconds * 1000
    client.deadlines.move(job)
    this.#scheduleClient(client)
    return true
  }

  /** Kicks buried jobs of the tube that the client uses, or delayed ones when there are no buried ones. */
  kick(client: Client, count: number, now: number): number {
    const { buried, delayed } = client.used
    const isBuried = buried.size > 0
    let kicked = 0
    while (kicked < count) {
      const job = isBuried ? buried.first : delayed.peek()
      if (job === undefined) break
      this.#kick(job, now)
      kicked++
    }
    return kicked
  }

  kickJob(id: number, now: number): boolean {
    const job = this.#jobs.get(id)
    if (job === undefined || (job.state !== 'buried' && job.state !== 'delayed')) return false
    this.#kick(job, now)
    return true
  }

  #kick(job: Job, now: number): void {
    this.#takeOut(job)
    job.kicks++
    this.#enter(job, 0, now, 'kick')
  }

  pause(tube: Tube, seconds: number, now: number): void {
    tube.pauseSeconds = seconds
    tube.pausedUntil = now + seconds * 1000
    tube.pauses++
    this.#scheduleTube(tube)
  }

  // Where jobs are

  #enter(job: Job, delaySeconds: number, now: number, change?: Change): void {
    if (delaySeconds > 0) {
      job.deadlineAt = now + delaySeconds * 1000
      this.#defer(job)
    } else {
      this.#offer(job)
    }
    if (change !== undefined) this.#witness.note(change, job)
    if (job.tube.waiting.size > 0) this.#serve([job.tube], now)
  }

  #offer(job: Job): void {
    job.state = 'ready'
    job.tube.ready.push(job)
    this.counts.ready++
    if (job.priority >= URGENT_BELOW) return
    this.counts.urgent++
    job.tube.urgent++
  }

  #defer(job: Job): void {
    job.state = 'delayed'
    job.tube.delayed.push(job)
    this.counts.delayed++
    this.#scheduleTube(job.tube)
  }

  #lay(job: Job): void {
    job.state = 'buried'
    job.tube.buried.append(job)
    this.counts.buried++
  }

  #hold(client: Client, job: Job, now: number): void {
    job.state = 'reserved'
    job.holder = client
    job.deadlineAt = now + job.ttrSeconds * 1000
    job.reserves++
    job.tube.reserved++
    this.counts.reserved++
    client.reserved.append(job)
    client.deadlines.push(job)
    this.#scheduleClient(client)
    this.#witness.note('reserve', job)
  }

  #heldBy(client: Client, id: number): Job | undefined {
    const job = this.#jobs.get(id)
    return job?.holder === client ? job : undefined
  }

  /** Takes the job out of where it is; the caller puts it elsewhere or forgets it. */
  #takeOut(job: Job): void {
    switch (job.state) {
      case 'ready':
        job.tube.ready.remove(job)
        this.counts.ready--
        if (job.priority >= URGENT_BELOW) return
        this.counts.urgent--
        job.tube.urgent--
        return
      case 'delayed':
        job.tube.delayed.remove(job)
        this.counts.delayed--
        this.#scheduleTube(job.tube)
        return
      case 'buried':
        job.tube.buried.remove(job)
        this.counts.buried--
        return
      case 'reserved':
        this.#takeFromHolder(job)
        return
      case 'coming':
        return
      default:
        throw new Error(`a job is ${job.state satisfies never}`)
    }
  }

  #takeFromHolder(job: Job): void {
    const client = job.holder as Client
    client.reserved.remove(job)
    client.deadlines.remove(job)
    job.holder = undefined
    job.tube.reserved--
    this.counts.reserved--
    this.#scheduleClient(client)
  }

  // Who waits

  #makeWorker(client: Client): void {
    if (client.isWorker) return
    client.isWorker = true
    this.counts.workers++
  }

  #stopWaiting(client: Client): void {
    if (!client.isWaiting) return
    client.isWaiting = false
    client.waitsUntil = NEVER
    this.counts.waiting--
    for (const tube of client.watched) tube.waiting.remove(client)
    this.#scheduleClient(client)
  }

  /** Hands out ready jobs of these tubes to those who wait, the most urgent one first. */
  #serve(tubes: readonly Tube[], now: number): void {
    for (;;) {
      let best: Job | undefined
      for (const tube of tubes) {
        const job = tube.waiting.size === 0 || tube.isPaused ? undefined : tube.ready.peek()
        if (job === undefined) continue
        if (best === undefined || job.priority < best.priority || (job.priority === best.priority && job.id < best.id))
          best = job
      }
      const client = best?.tube.waiting.take()
      if (best === undefined || client === undefined) return
      this.#stopWaiting(client)
      this.#takeOut(best)
      this.#hold(client, best, now)
      this.#witness.answer(client, best)
    }
  }

  #isDeadlineSoon(client: Client, now: number): boolean {
    const soonest = client.deadlines.peek()
    return soonest !== undefined && now >= soonest.deadlineAt - MARGIN_MS
  }

  // What is due

  #wakeTube(tube: Tube, now: number): void {
    if (tube.pausedUntil <= now) {
      tube.pausedUntil = NEVER
      tube.pauseSeconds = 0
      this.#scheduleTube(tube)
      this.#serve([tube], now)
      return
    }
    const job = tube.delayed.peek()
    // `takeOut` sets the next alarm.
    if (job === undefined) {
      this.#scheduleTube(tube)
      return
    }
    this.#takeOut(job)
    this.#enter(job, 0, now)
  }

  #wakeClient(client: Client, now: number): void {
    const isSoon = client.isWaiting && this.#isDeadlineSoon(client, now)
    for (;;) {
      const job = client.deadlines.peek()
      if (job === undefined || job.deadlineAt > now) break
      this.#takeFromHolder(job)
      job.timeouts++
      this.counts.timeouts++
      this.#enter(job, 0, now, 'timeout')
    }
    // What has timed out may just have been handed to this very client.
    if (client.isWaiting && (isSoon || client.waitsUntil <= now)) {
      this.#stopWaiting(client)
      this.#witness.answer(client, isSoon ? 'DEADLINE_SOON' : 'TIMED_OUT')
    }
    this.#scheduleClient(client)
  }

  #scheduleTube(tube: Tube): void {
    this.#setAlarm(tube, Math.min(tube.delayed.peek()?.deadlineAt ?? NEVER, tube.pausedUntil))
  }

  #scheduleClient(client: Client): void {
    const soonest = client.deadlines.peek()
    const deadlineAt = soonest === undefined ? NEVER : soonest.deadlineAt
    this.#setAlarm(client, client.isWaiting ? Math.min(deadlineAt - MARGIN_MS, client.waitsUntil) : deadlineAt)
  }

  #setAlarm(sleeper: Tube | Client, wakeAt: number): void {
    if (sleeper.wakeAt === wakeAt) return
    sleeper.wakeAt = wakeAt
    if (sleeper.position < 0) this.#alarms.push(sleeper)
    else if (wakeAt === NEVER) this.#alarms.remove(sleeper)
    else this.#alarms.move(sleeper)
  }

  // Which tubes there are

  #findOrMake(name: string): Tube {
    const known = this.#names.get(name)
    if (known !== undefined) return known
    const tube = new Tube(name)
    tube.index = this.#list.length
    this.#list.push(tube)
    this.#names.set(name, tube)
    return tube
  }

  /** One reference less; without any the tube is forgotten, with its statistics and its pause. */
  #release(tube: Tube): void {
    if (--tube.references > 0) return
    this.#setAlarm(tube, NEVER)
    this.#names.delete(tube.name)
    const last = this.#list.pop() as Tube
    if (last === tube) return
    this.#list[tube.index] = last
    last.index = tube.index
  }
}
