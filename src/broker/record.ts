/**
 * What the journal writes: records of changes, in frames that tell whether they are whole.
 *
 *     frame    length of the records (4 bytes) - CRC-32 of the records (4) - records
 *     record   kind (1) - number of the job (8, a double) - what the kind needs
 *
 * Little-endian. A segment begins with a frame of one `head` record. To change a record, raise FORMAT, keep reading the
 * old kind, and write the new one under a letter of its own.
 */

import { crc32 } from 'node:zlib'
import type { Job } from './job.ts'
import type { Change } from './tubes.ts'

export const FORMAT = 1
const MAGIC = 'qworker broker journal'
export const FRAME_BYTES = 8
const KEY_BYTES = 9
const FULL_BYTES = 63
const STATES = ['ready', 'delayed', 'buried'] as const

const KINDS = {
  head: 72, // H
  put: 80, // P: all that is known of the job
  reserve: 82, // R
  timeout: 84, // T
  release: 76, // L
  bury: 66, // B
  kick: 75, // K
  delete: 68, // D
} as const

/** A job as a `put` record has it. What is reserved is kept as ready: that is what it is after a restart. */
export interface Kept {
  readonly id: number
  readonly createdAt: number
  readonly deadlineAt: number
  readonly priority: number
  readonly delaySeconds: number
  readonly ttrSeconds: number
  readonly state: (typeof STATES)[number]
  readonly reserves: number
  readonly timeouts: number
  readonly releases: number
  readonly buries: number
  readonly kicks: number
  readonly tube: string
  readonly body: string
}

export type StoredChange =
  | { kind: 'head'; format: number; nextId: number }
  | { kind: 'put'; job: Kept }
  | { kind: 'reserve' | 'timeout' | 'kick' | 'delete'; id: number }
  | { kind: 'release'; id: number; priority: number; delaySeconds: number; deadlineAt: number }
  | { kind: 'bury'; id: number; priority: number; deadlineAt: number }

/** How long the `put` record of a job is. */
export function sizeOfPut(job: Job): number {
  return FULL_BYTES + job.tube.name.length + job.body.length
}

/** Records on their way to the disk. */
export class Frame {
  #bytes = Buffer.allocUnsafe(1 << 16)
  #used = FRAME_BYTES

  /** of the records alone */
  get size(): number {
    return this.#used - FRAME_BYTES
  }

  clear(): void {
    this.#used = FRAME_BYTES
    if (this.#bytes.length > 1 << 22) this.#bytes = Buffer.allocUnsafe(1 << 16)
  }

  /** The frame, whole; good until the next record is added. */
  seal(): Buffer {
    const records = this.#bytes.subarray(FRAME_BYTES, this.#used)
    this.#bytes.writeUInt32LE(records.length, 0)
    this.#bytes.writeUInt32LE(crc32(records), 4)
    return this.#bytes.subarray(0, this.#used)
  }

  addHead(nextId: number): void {
    this.#begin(KINDS.head, nextId, KEY_BYTES + 1 + MAGIC.length)
    this.#bytes.writeUInt8(FORMAT, this.#used)
    this.#bytes.write(MAGIC, this.#used + 1, 'latin1')
    this.#used += 1 + MAGIC.length
  }

  add(change: Change, job: Job): void {
    switch (change) {
      case 'put':
        this.#addPut(job)
        return
      case 'release':
        this.#begin(KINDS.release, job.id, KEY_BYTES + 16)
        this.#bytes.writeUInt32LE(job.priority, this.#used)
        this.#bytes.writeUInt32LE(job.delaySeconds, this.#used + 4)
        this.#bytes.writeDoubleLE(job.deadlineAt, this.#used + 8)
        this.#used += 16
        return
      case 'bury':
        this.#begin(KINDS.bury, job.id, KEY_BYTES + 12)
        this.#bytes.writeUInt32LE(job.priority, this.#used)
        this.#bytes.writeDoubleLE(job.deadlineAt, this.#used + 4)
        this.#used += 12
        return
      default:
        this.#begin(KINDS[change], job.id, KEY_BYTES)
    }
  }

  #addPut(job: Job): void {
    const { name } = job.tube
    this.#begin(KINDS.put, job.id, sizeOfPut(job))
    const bytes = this.#bytes
    const state = job.state === 'delayed' ? 1 : job.state === 'buried' ? 2 : 0
    let at = bytes.writeDoubleLE(job.createdAt, this.#used)
    at = bytes.writeDoubleLE(job.deadlineAt, at)
    at = bytes.writeUInt32LE(job.priority, at)
    at = bytes.writeUInt32LE(job.delaySeconds, at)
    at = bytes.writeUInt32LE(job.ttrSeconds, at)
    at = bytes.writeUInt32LE(job.reserves, at)
    at = bytes.writeUInt32LE(job.timeouts, at)
    at = bytes.writeUInt32LE(job.releases, at)
    at = bytes.writeUInt32LE(job.buries, at)
    at = bytes.writeUInt32LE(job.kicks, at)
    at = bytes.writeUInt8(state, at)
    at = bytes.writeUInt8(name.length, at)
    at = bytes.writeUInt32LE(job.body.length, at)
    at += bytes.write(name, at, 'latin1')
    this.#used = at + bytes.write(job.body, at, 'latin1')
  }

  #begin(kind: number, id: number, size: number): void {
    const needed = this.#used + size
    if (needed > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(needed, 2 * this.#bytes.length))
      this.#bytes.copy(larger, 0, 0, this.#used)
      this.#bytes = larger
    }
    this.#bytes[this.#used] = kind
    this.#used = this.#bytes.writeDoubleLE(id, this.#used + 1)
  }
}

/**
 * Reads the records of one frame of a segment.
 * @returns where the next one begins; undefined when there is none that is whole
 */
export function readFrame(bytes: Buffer, at: number, onRecord: (change: StoredChange) => void): number | undefined {
  if (bytes.length - at <= FRAME_BYTES) return undefined
  const size = bytes.readUInt32LE(at)
  const end = at + FRAME_BYTES + size
  if (size === 0 || end > bytes.length) return undefined
  const records = bytes.subarray(at + FRAME_BYTES, end)
  if (crc32(records) !== bytes.readUInt32LE(at + 4)) return undefined
  readRecords(records, onRecord)
  return end
}

function readRecords(bytes: Buffer, onRecord: (change: StoredChange) => void): void {
  for (let at = 0; at < bytes.length; ) {
    const kind = bytes[at]
    const id = bytes.readDoubleLE(at + 1)
    at += KEY_BYTES
    switch (kind) {
      case KINDS.head:
        onRecord({ kind: 'head', format: bytes.readUInt8(at), nextId: id })
        at += 1 + MAGIC.length
        break
      case KINDS.put: {
        const job = readPut(id, bytes, at)
        onRecord({ kind: 'put', job })
        at += FULL_BYTES - KEY_BYTES + job.tube.length + job.body.length
        break
      }
      case KINDS.release: {
        const [priority, delaySeconds] = [bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4)]
        onRecord({ kind: 'release', id, priority, delaySeconds, deadlineAt: bytes.readDoubleLE(at + 8) })
        at += 16
        break
      }
      case KINDS.bury:
        onRecord({ kind: 'bury', id, priority: bytes.readUInt32LE(at), deadlineAt: bytes.readDoubleLE(at + 4) })
        at += 12
        break
      case KINDS.reserve:
        onRecord({ kind: 'reserve', id })
        break
      case KINDS.timeout:
        onRecord({ kind: 'timeout', id })
        break
      case KINDS.kick:
        onRecord({ kind: 'kick', id })
        break
      case KINDS.delete:
        onRecord({ kind: 'delete', id })
        break
      default:
        throw new Error(`a record of kind ${kind} is unknown; a newer version may have written it`)
    }
  }
}

function readPut(id: number, bytes: Buffer, at: number): Kept {
  const nameAt = at + FULL_BYTES - KEY_BYTES
  const bodyAt = nameAt + bytes.readUInt8(at + 49)
  return {
    id,
    createdAt: bytes.readDoubleLE(at),
    deadlineAt: bytes.readDoubleLE(at + 8),
    priority: bytes.readUInt32LE(at + 16),
    delaySeconds: bytes.readUInt32LE(at + 20),
    ttrSeconds: bytes.readUInt32LE(at + 24),
    reserves: bytes.readUInt32LE(at + 28),
    timeouts: bytes.readUInt32LE(at + 32),
    releases: bytes.readUInt32LE(at + 36),
    buries: bytes.readUInt32LE(at + 40),
    kicks: bytes.readUInt32LE(at + 44),
    state: STATES[bytes.readUInt8(at + 48)] ?? 'ready',
    tube: bytes.toString('latin1', nameAt, bodyAt),
    body: bytes.toString('latin1', bodyAt, bodyAt + bytes.readUInt32LE(at + 50)),
  }
}
