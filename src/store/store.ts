/** Where results rest. Two drivers: a local directory (always), and an S3 bucket (when one is configured). */

/** What a store does with a job that published. */
export interface Publication {
  readonly uuid: string
  /** Outputs and logs: name in the job's directory -> absolute path of the file that holds the bytes. Moved or copied, also when nothing is committed. */
  readonly files: ReadonlyMap<string, string>
  /** Text of `status.json`. */
  readonly status: string
  /** Text of `result.json`, the commit point: written last. Absent for an attempt that did not succeed. */
  readonly result?: string
  /** Gives up what is under way; only a store that takes long looks at it. */
  readonly signal?: AbortSignal
}

/** Who publishes: stands in the lock of a job, so that the lock of a dead process is told from that of a slow one. */
export interface Publisher {
  /** one line */
  readonly identity: string
  stateOf(identity: string): 'alive' | 'dead' | 'unknown'
  /**
   * A folder of the publisher's alone, on the same disk, for what is not published yet: should it die in the middle,
   * that is removed with it. Undefined: the job's own directory.
   */
  readonly staging?: string | undefined
}

/** A document or file of a job as a reader gets it. */
export interface StoredFile {
  readonly path: string
  readonly bytes: number
  readonly modified: Date
  /**
   * Another one after every change of the file, and for every other file of its name. Undefined while the file is so
   * young that the times on its disk may be too coarse to show the next change.
   */
  readonly version: string | undefined
}

export interface Store {
  /** Tells what is wrong with the place, one line a problem with its remedy; empty when it can be used. */
  check(): Promise<string[]>
  /**
   * Publishes files first, `status.json` next, `result.json` last, or all at once; durable when the promise settles.
   * `beforeCommit` is asked before published names change, and right before `result.json` gets its own; when it answers
   * false nothing is committed and the promise resolves to false. So it does when the job has a result already: the
   * first one stays.
   * @throws StoreError
   */
  publish(publication: Publication, beforeCommit?: () => Promise<boolean>): Promise<boolean>
  /** Replaces only `status.json`. @throws StoreError */
  writeStatus(uuid: string, status: string): Promise<void>
  /** Text of a document, or undefined when there is none. `signal` gives up a store that takes long. @throws StoreError */
  read(uuid: string, document: 'status.json' | 'result.json', signal?: AbortSignal): Promise<string | undefined>
  close(): Promise<void>
}

/** The store that a worker's own HTTP server serves from. */
export interface LocalStore extends Store {
  /** Sees, before its algorithm runs, that a job has a place: what cannot be published must not be run. @throws StoreError */
  prepare(uuid: string): Promise<void>
  /** Removes what a publisher that died left in a job's directory. @throws StoreError */
  tidy(uuid: string): Promise<void>
  /**
   * A published file, or undefined when there is none that may be served: the uuid or name is malformed, it is no
   * regular file, it is a link, or it is an output of a job whose result is not committed yet.
   * @param known what was found before; itself when it is there unchanged, which is cheaper to tell
   */
  find(uuid: string, name: string, known?: StoredFile): Promise<StoredFile | undefined>
}

/** What a trial of a bucket came to. */
export interface Probe {
  /** what a worker needs and cannot do, one line each with its remedy */
  readonly problems: readonly string[]
  /** key of a probe that could not be removed again, and why; no worker ever needs to remove anything */
  readonly left: { readonly key: string; readonly why: string } | undefined
  /** how far the server's clock is ahead of ours, to about a second; undefined: it did not tell */
  readonly clockAheadMs: number | undefined
}

export interface S3Store extends Store {
  /** Writes, reads and removes an object of its own, within 10 s. */
  probe(): Promise<Probe>
}

export interface S3Options {
  readonly bucket: string
  /** put before `<uuid>/...`; no leading slash, ends with one unless empty */
  readonly prefix: string
  /** for servers that are not AWS */
  readonly endpoint?: string
  readonly region: string
  readonly forcePathStyle: boolean
}

/** Opens the store under a base directory. */
export async function openLocalStore(baseDir: string, publisher?: Publisher): Promise<LocalStore> {
  const { openLocal } = await import('./local.ts')
  return openLocal(baseDir, publisher)
}

/** Opens the store in a bucket; the SDK is loaded only here. */
export async function openS3Store(options: S3Options): Promise<S3Store> {
  const { openS3 } = await import('./s3.ts')
  return openS3(options)
}

export type StoreErrorCode = 'full' | 'denied' | 'unavailable' | 'failed'

/** The place where results rest cannot do its part; the job is not at fault. */
export class StoreError extends Error {
  readonly code: StoreErrorCode

  constructor(code: StoreErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'StoreError'
    this.code = code
  }
}
