/** Submission of one job; `batch/` submits many. */

import { closeSync, openSync, readSync } from 'node:fs'
import { encodePackage, type Header, PackageError, type WorkPackage } from './job/package.ts'
import { type PutOptions, type PutQueue, QueueError, type Ticket } from './queue/queue.ts'

/** What a producer adds to the header of a job. */
export interface HeaderDefaults {
  readonly type?: string | undefined
  readonly maxAttempts?: number | undefined
  readonly tags?: Readonly<Record<string, string>> | undefined
}

export interface JobRequest extends HeaderDefaults {
  readonly type: string
  /** JSON text; it is sent as it is */
  readonly payloadJson: string
  /** a new one when absent */
  readonly uuid?: string | undefined
}

/** Makes a work package; `encodePackage` checks it. */
export function makePackage(request: JobRequest): WorkPackage {
  const { type, payloadJson, uuid = makeUuid(), maxAttempts, tags } = request
  const header: Header = {
    uuid,
    type,
    ...(maxAttempts === undefined ? {} : { max_attempts: maxAttempts }),
    ...(tags === undefined ? {} : { tags }),
  }
  return { header, payloadJson }
}

function makeUuid(): string {
  const bytes = makeRandomBytes(16)
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80
  return bytes.toString('hex')
}

/** As good as those of node:crypto, which is loaded as long as the talk with the broker takes. */
function makeRandomBytes(count: number): Buffer {
  try {
    const file = openSync('/dev/urandom', 'r')
    try {
      const bytes = Buffer.alloc(count)
      if (readSync(file, bytes, 0, count, null) === count) return bytes
    } finally {
      closeSync(file)
    }
  } catch {
    // A system, or a jail, without it.
  }
  return process.getBuiltinModule('node:crypto').randomBytes(count)
}

/**
 * The JSON text of a payload. A text that begins with `{` or `[` must be JSON and is taken as it is, to the last digit;
 * any other text is wrapped as `{"payload": text}`.
 * @throws PackageError `not_json`
 */
export function payloadFromText(text: string): string {
  const trimmed = text.trim()
  if (!/^[{[]/.test(trimmed)) return JSON.stringify({ payload: text })
  try {
    JSON.parse(trimmed)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.replaceAll(/\s+/g, ' ') : String(cause)
    throw new PackageError(
      'not_json',
      `the payload begins like JSON and is none (${reason}): correct it, or to send it as text write {"payload": "..."}`,
      { cause },
    )
  }
  return trimmed
}

export interface Submission {
  readonly ticket: Ticket
  /** of the work package on the wire */
  readonly bytes: number
}

/**
 * Puts one job.
 * @throws PackageError for a package that workers would refuse
 * @throws QueueError `too_big` before anything is sent
 */
export async function submit(queue: PutQueue, workPackage: WorkPackage, options: PutOptions): Promise<Submission> {
  const body = encodePackage(workPackage)
  checkSize(body.length, queue)
  const ticket = await queue.put(body, { ...options, key: workPackage.header.uuid })
  return { ticket, bytes: body.length }
}

/** @throws QueueError `too_big` */
export function checkSize(bytes: number, queue: Pick<PutQueue, 'maxBodyBytes'>): void {
  if (bytes <= queue.maxBodyBytes) return
  throw new QueueError(
    'too_big',
    `the work package has ${bytes} bytes and the broker takes at most ${queue.maxBodyBytes}: start beanstalkd with -z ${bytes}, or put the data on a URL and send that`,
  )
}
