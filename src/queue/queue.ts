/** Where jobs wait: the contract that every queue driver fulfils. All times are seconds. */

/** The broker's number for a job; where several servers are in use, with its server: `5@host:port`. */
export type Ticket = string

export interface PutOptions {
  readonly tube: string
  /** 0 is most urgent, 4294967295 least */
  readonly priority: number
  readonly delaySeconds: number
  /** at least 1 */
  readonly ttrSeconds: number
  /** the uuid of the job, by which one of several servers is chosen */
  readonly key?: string
}

/** A work package held by one slot until it is settled. Every method throws QueueError. */
export interface Reservation {
  readonly ticket: Ticket
  readonly body: Buffer
  readonly tube: string
  readonly priority: number
  readonly ttrSeconds: number
  /** seconds since the job was put */
  readonly ageSeconds: number
  /** times the broker remembers that the job was reserved; not an attempt count: it is lost when the broker restarts */
  readonly reserves: number
  /** times that it was buried; kept by the broker over a restart */
  readonly buries: number
  /** Starts the TTR anew. QueueError `not_found` when the reservation is no longer ours. */
  touch(): Promise<void>
  delete(): Promise<void>
  release(options: { priority: number; delaySeconds: number }): Promise<void>
  bury(priority: number): Promise<void>
}

/** What a producer needs of a queue. */
export type PutQueue = Pick<Queue, 'maxBodyBytes' | 'put' | 'putMany' | 'ticketState' | 'countJobs' | 'close'>

/** What the broker knows of one ticket. */
export type TicketState = 'ready' | 'delayed' | 'reserved' | 'buried' | 'gone'

/**
 * One connection to a broker. While `reserve` waits, nothing else on it is processed: a slot needs a queue of its own.
 * After the connection is lost every method throws QueueError `connection_lost`; open a new one.
 */
export interface Queue {
  /** Largest body in bytes that the broker takes. */
  readonly maxBodyBytes: number
  /** Settles when the connection is gone, whoever ended it; never rejects. */
  readonly closed: Promise<void>
  /** Puts a body; several puts may be under way at once, they are answered in order. @throws QueueError */
  put(body: Uint8Array, options: PutOptions): Promise<Ticket>
  /**
   * Puts bodies of text, in order, sent together. Each has its answer in its place: a ticket, or why there is none. It
   * never rejects. After an error that is no answer of the broker's the job may be in the tube all the same.
   * @param keys of the jobs, as in PutOptions
   */
  putMany(
    bodies: readonly string[],
    options: PutOptions,
    keys?: readonly string[],
  ): Promise<readonly (Ticket | QueueError)[]>
  /** Takes jobs from these tubes and no others. @throws QueueError */
  watch(tubes: readonly string[]): Promise<void>
  /** The next job, or undefined when none came within the time. @throws QueueError */
  reserve(timeoutSeconds: number): Promise<Reservation | undefined>
  /**
   * Takes one job by its ticket, from whatever tube it is in. Undefined when it is not there, or reserved by a connection
   * (one of ours that broke and is not closed yet on the broker's side included). A broker that was restarted without a
   * binlog numbers its jobs anew: compare the body. @throws QueueError
   */
  reserveTicket(ticket: Ticket): Promise<Reservation | undefined>
  /** @throws QueueError */
  ticketState(ticket: Ticket): Promise<TicketState>
  /** How many jobs a tube has, after all puts of this connection that came before; a tube that is not there has none. @throws QueueError */
  countJobs(tube: string): Promise<JobCounts>
  /** Ends the connection; whatever waits on it fails with `closed`. Reservations fall back to the tube. */
  close(): void
}

export type QueueErrorCode =
  /** nothing answers at that address, or what answers is no broker */
  | 'unreachable'
  /** the connection broke, or the broker did not answer in time */
  | 'connection_lost'
  /** we closed it */
  | 'closed'
  /** the job is not there, or not ours */
  | 'not_found'
  | 'too_big'
  /** the broker takes no more jobs now: it drains or is out of memory */
  | 'refused'
  /** a reply that the protocol does not foresee here */
  | 'protocol'

export class QueueError extends Error {
  readonly code: QueueErrorCode

  constructor(code: QueueErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'QueueError'
    this.code = code
  }
}

/** Tube names as beanstalkd takes them. */
export function isTubeName(name: string): boolean {
  return /^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}$/.test(name)
}

export type JobCounts = Readonly<Record<'ready' | 'reserved' | 'delayed' | 'buried', number>>

/** What a broker says of itself. */
export interface BrokerDescription {
  readonly version: string
  /** its jobs outlive a restart */
  readonly isDurable: boolean
  /** it takes no more jobs */
  readonly isDraining: boolean
  /** of the largest body that it takes */
  readonly maxBodyBytes: number
  readonly jobs: JobCounts
}

/**
 * Opens one connection.
 * @param url `beanstalk://host:port`
 * @throws QueueError `unreachable`
 */
export async function openQueue(url: string): Promise<Queue> {
  const { openBeanstalk } = await loadDriver(url)
  return openBeanstalk(url)
}

/**
 * Asks a broker about itself, on a connection that is closed again.
 * @param url `beanstalk://host:port`
 * @throws QueueError `unreachable`
 */
export async function describeBroker(url: string): Promise<BrokerDescription> {
  const { describeBeanstalk } = await loadDriver(url)
  return describeBeanstalk(url)
}

async function loadDriver(url: string): Promise<typeof import('./beanstalk.ts')> {
  const { protocol } = new URL(url)
  switch (protocol) {
    case 'beanstalk:':
      return import('./beanstalk.ts')
    default:
      throw new QueueError('unreachable', `no queue driver for ${protocol}// - use beanstalk://host:port`)
  }
}
