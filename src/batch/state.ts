/**
 * What a feed remembers from one run to the next: a JSON document, `state file` to its users. It names a place in the
 * input and tells by two fingerprints whether that place is still what it was.
 *
 * This is format 1. To change it: a new key that may be absent needs nothing; anything else needs a new number, which
 * older releases refuse, and a release that reads both.
 */

import { createHash } from 'node:crypto'
import { open, readFile, rename, rm } from 'node:fs/promises'
import type { Position } from './batch.ts'
import { SEED_BYTES } from './uuids.ts'

const FORMAT = 1
const MAX_BYTES = 65_536
/** How much of the input's beginning, and of what is before the place, is compared. */
export const PRINT_BYTES = 4096

/** Bytes of the input that must be there again. */
interface Fingerprint {
  readonly bytes: number
  readonly sha256: string
}

export interface FeedState {
  /** of the uuids; who has it knows them all */
  readonly seed: Buffer
  /** all lines before it are accepted, or empty */
  readonly position: Position
  /** jobs of these lines */
  readonly accepted: number
  /** the position was the end of the input */
  readonly isFinished: boolean
  /** of the beginning, at most up to the position */
  readonly head: Fingerprint
  /** of what ends at the position */
  readonly tail: Fingerprint
}

export type FeedErrorCode =
  /** the state file cannot be read */
  | 'unreadable'
  /** the file is no state file */
  | 'corrupt'
  /** the input is another one than that of the state */
  | 'changed'
  /** another feed has the state file now */
  | 'busy'
  /** the state file cannot be written */
  | 'unwritable'

export class FeedError extends Error {
  readonly code: FeedErrorCode

  constructor(code: FeedErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'FeedError'
    this.code = code
  }
}

export function makeFingerprint(bytes: Uint8Array): Fingerprint {
  return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
}

export function fits(print: Fingerprint, bytes: Uint8Array): boolean {
  return makeFingerprint(bytes).sha256 === print.sha256
}

/** Undefined when there is none. @throws FeedError `unreadable`, `corrupt` */
export async function readState(path: string): Promise<FeedState | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new FeedError(
      'unreadable',
      `the state file ${path} cannot be read (${code}): name another with --state`,
      cause,
    )
  }
  const state = text.length > MAX_BYTES ? undefined : parseState(text)
  if (state !== undefined) return state
  throw new FeedError(
    'corrupt',
    `${path} is no state file of a feed, or damaged: name another with --state; or, to put all lines again, move it away`,
  )
}

function parseState(text: string): FeedState | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null) return undefined
  const { format, seed, line, offset, accepted, finished, head, tail } = value as Record<string, unknown>
  if (format !== FORMAT || !isHex(seed, SEED_BYTES) || typeof finished !== 'boolean') return undefined
  if (!isCount(line) || !isCount(offset) || !isCount(accepted) || !isFingerprint(head) || !isFingerprint(tail))
    return undefined
  const isPossible = line <= offset && accepted <= line && head.bytes <= offset && tail.bytes <= offset
  if (!isPossible) return undefined
  return { seed: Buffer.from(seed, 'hex'), position: { line, offset }, accepted, isFinished: finished, head, tail }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function isHex(value: unknown, bytes: number): value is string {
  return typeof value === 'string' && value.length === 2 * bytes && /^[0-9a-f]+$/.test(value)
}

function isFingerprint(value: unknown): value is Fingerprint {
  const { bytes, sha256 } = (value ?? {}) as Record<string, unknown>
  return isCount(bytes) && bytes <= PRINT_BYTES && isHex(sha256, 32)
}

/**
 * Replaces the file as a whole: a reader, and a run after a power failure, finds the old one or the new one. One writer
 * at a time. @throws FeedError `unwritable`
 */
export async function writeState(path: string, state: FeedState): Promise<void> {
  const { seed, position, accepted, isFinished, head, tail } = state
  const document = {
    format: FORMAT,
    seed: seed.toString('hex'),
    line: position.line,
    offset: position.offset,
    accepted,
    finished: isFinished,
    head,
    tail,
    timestamp: new Date().toISOString(),
  }
  const temporary = `${path}.tmp`
  try {
    // For its owner alone: with the seed results could be found.
    const file = await open(temporary, 'w', 0o600)
    try {
      await file.writeFile(`${JSON.stringify(document)}\n`)
      await file.datasync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined)
    const { code } = cause as NodeJS.ErrnoException
    throw new FeedError(
      'unwritable',
      `the state file ${path} cannot be written (${code}): give this user a folder with space that it may write to, or name another file with --state`,
      cause,
    )
  }
}
