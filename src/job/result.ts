/** The two documents that are published for each job: `result.json` and `status.json`. */

import type { KillReceipt, Outcome, Usage } from './outcome.ts'

/**
 * Format number of both documents, in their field `format`. A new optional field needs no new number. To rename, remove
 * or change the meaning of a field: raise it, keep reading the older one in `parseStatus`, and tell readers in the README.
 */
export const DOCUMENT_FORMAT = 1

/** Names in a job's directory that are ours; no output of an algorithm may take them. */
export const RESERVED_NAMES: readonly string[] = [
  'result.json',
  'status.json',
  'stdout.log',
  'stderr.log',
  'input.json',
]

export type JobState = 'scheduled' | 'queued' | 'running' | 'complete' | 'failed' | 'stopped' | 'discarded' | 'expired'

/** One published output. */
export interface PublishedFile {
  readonly name: string
  readonly bytes: number
  /** lower-case hexadecimal */
  readonly sha256: string
}

/** A file that the algorithm left and that is not published, with the reason. */
export interface SkippedFile {
  readonly name: string
  readonly reason: string
}

export interface AttemptRecord {
  /** 1 for the first */
  readonly attempt: number
  readonly worker: string
  /** ISO 8601 UTC */
  readonly started: string
  readonly ended: string
  readonly duration_seconds: number
  readonly outcome: Outcome['kind']
  readonly exit_code: number | null
  readonly signal?: string
  /** what went wrong, in one line; null after a success */
  readonly error: string | null
  /** last bytes of stderr as text */
  readonly stderr_tail: string
  readonly kill?: KillReceipt
  /** absent when no process was started */
  readonly usage?: Usage
}

/** Where the copy on S3 stands. Absent when no bucket is configured. */
export interface S3State {
  readonly state: 'pending' | 'published'
  readonly error?: string
  readonly since: string
}

export interface StatusDocument {
  readonly format: number
  readonly uuid: string
  readonly type: string | null
  readonly state: JobState
  /** ISO 8601 UTC: when this document was made */
  readonly timestamp: string
  /** why the job failed for good; absent otherwise */
  readonly reason?: string
  /** ISO 8601 UTC: when a released job may be tried again; absent otherwise */
  readonly retry_at?: string
  readonly tags?: Readonly<Record<string, string>>
  readonly attempts: readonly AttemptRecord[]
  /** the attempt that is under way; only while the state is running, and only from the worker's memory */
  readonly running?: {
    readonly attempt: number
    readonly worker: string
    readonly started: string
    readonly deadline: string
  }
  /** files of the successful attempt that are not published */
  readonly skipped_files?: readonly SkippedFile[]
  readonly s3?: S3State
}

export interface ResultFields {
  readonly uuid: string
  readonly type: string
  /** of the algorithm, from its manifest */
  readonly version: string
  /** ISO 8601 UTC: when the result was made; always there, so that outdated results are detectable */
  readonly timestamp: string
  readonly attempt: number
  readonly worker: string
  readonly started: string
  readonly finished: string
  readonly duration_seconds: number
  readonly exit_code: number
  /** JSON text, kept as the algorithm wrote it: no digit of a number is lost */
  readonly resultJson: string
  readonly files: readonly PublishedFile[]
}

/** Makes the text of `result.json`. */
export function encodeResult(fields: ResultFields): string {
  const { resultJson, files, ...rest } = fields
  const head = JSON.stringify({ format: DOCUMENT_FORMAT, ...rest })
  return `${head.slice(0, -1)},"result":${resultJson.trim()},"files":${JSON.stringify(files)}}\n`
}

/**
 * The files that a text of `encodeResult` lists, without parsing the rest, which may take half a second. Within JSON text
 * an unescaped quote after a comma begins a key or a value, so the last such place is the key that encodeResult wrote.
 * @throws SyntaxError when the text is none of ours
 */
export function parseResultFiles(text: string): readonly PublishedFile[] {
  const key = ',"files":'
  const start = text.lastIndexOf(`${key}[`)
  const files: unknown = start < 0 ? undefined : JSON.parse(text.slice(start + key.length, text.lastIndexOf('}')))
  if (Array.isArray(files) && files.every((file) => typeof file?.name === 'string')) return files
  throw new SyntaxError('the text is no result document: its last key is not a list of files')
}

/** Makes the text of `status.json`. */
export function encodeStatus(status: StatusDocument): string {
  return `${JSON.stringify(status)}\n`
}

function isAttemptList(value: unknown): boolean {
  return Array.isArray(value) && value.every((entry) => typeof entry === 'object' && Number.isInteger(entry?.attempt))
}

/** Reads a status document; undefined when the text is none (a foreign file, a torn write, a later format). */
export function parseStatus(text: string): StatusDocument | undefined {
  // Most jobs have none yet, and an exception takes as long as a file.
  if (text === '') return undefined
  try {
    const value = JSON.parse(text) as Partial<StatusDocument> | null
    if (value?.format !== DOCUMENT_FORMAT || !isAttemptList(value.attempts) || typeof value.uuid !== 'string') {
      return undefined
    }
    return value as StatusDocument
  } catch {
    return undefined
  }
}
