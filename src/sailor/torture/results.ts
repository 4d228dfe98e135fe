/** Results on disk: watched while they appear, and read as a whole at the end. */

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parseStatus } from '../../job/result.ts'
import type { DiskFacts, Finding } from './verdict.ts'

/** How a published result.json was first seen. It is never touched again: no later attempt may replace it. */
interface Sighting {
  readonly inode: bigint
  readonly modifiedNs: bigint
  readonly sha256: string
}

export interface ResultWatch {
  /**
   * Looks for results of these jobs. At those that it knows it looks again, for changes: at a tenth of them each time,
   * so that a long torture has time for other things, or at all.
   */
  look(uuids: Iterable<string>, again?: 'tenth' | 'all'): void
  readonly replaced: readonly Finding[]
  readonly seenCount: () => number
}

export function watchResults(baseDir: string): ResultWatch {
  const seen = new Map<string, Sighting>()
  const replaced = new Map<string, Finding>()
  let looks = 0
  return {
    look: (uuids, again = 'tenth') => {
      looks++
      let number = 0
      for (const uuid of uuids) {
        const known = seen.get(uuid)
        if (known !== undefined && again === 'tenth' && (number++ + looks) % 10 !== 0) continue
        const now = sightOf(join(jobDir(baseDir, uuid), 'result.json'), known)
        if (now === undefined) {
          if (known !== undefined) replaced.set(uuid, { id: uuid, detail: 'result.json was there and is gone' })
          continue
        }
        if (known === undefined) seen.set(uuid, now)
        else if (now.inode !== known.inode || now.modifiedNs !== known.modifiedNs || now.sha256 !== known.sha256) {
          const what = now.sha256 === known.sha256 ? 'written again with the same bytes' : 'replaced by another'
          replaced.set(uuid, { id: uuid, detail: `result.json was ${what} after it was published` })
        }
      }
    },
    get replaced() {
      return [...replaced.values()]
    },
    seenCount: () => seen.size,
  }
}

/** The bytes are read anew only when the file is another. */
function sightOf(path: string, known: Sighting | undefined): Sighting | undefined {
  try {
    const { ino, mtimeNs } = statSync(path, { bigint: true })
    if (known?.inode === ino && known.modifiedNs === mtimeNs) return known
    return { inode: ino, modifiedNs: mtimeNs, sha256: hashOf(readFileSync(path)) }
  } catch {
    return undefined
  }
}

function jobDir(baseDir: string, uuid: string): string {
  return join(baseDir, uuid.slice(0, 2), uuid)
}

function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

interface ResultDocument {
  readonly uuid?: unknown
  readonly timestamp?: unknown
  readonly files?: readonly { readonly name: string; readonly bytes: number; readonly sha256: string }[]
}

/** What a copy elsewhere must hold: name and sha256 of each file, result.json among them. */
export type Manifest = ReadonlyMap<string, string>

export function readDisk(baseDir: string, uuid: string): { disk: DiskFacts; files: Manifest } {
  const dir = jobDir(baseDir, uuid)
  const status = parseStatus(readText(join(dir, 'status.json')) ?? '')
  const told = { state: status?.state, reason: status?.reason }
  const result = readText(join(dir, 'result.json'))
  if (result === undefined) return { disk: { result: 'none', ...told }, files: new Map() }
  const files = new Map([['result.json', hashOf(Buffer.from(result))]])
  const damage = findDamage(dir, uuid, result, files)
  if (damage !== undefined) return { disk: { result: 'damaged', damage, ...told }, files }
  return { disk: { result: 'whole', ...told }, files }
}

function findDamage(dir: string, uuid: string, text: string, files: Map<string, string>): string | undefined {
  let document: ResultDocument
  try {
    document = JSON.parse(text) as ResultDocument
  } catch {
    return `result.json (${text.length} characters) is no JSON`
  }
  if (document.uuid !== uuid) return `result.json is of ${String(document.uuid)}`
  if (typeof document.timestamp !== 'string') return 'result.json has no timestamp'
  for (const { name, bytes, sha256 } of document.files ?? []) {
    let content: Buffer
    try {
      content = readFileSync(join(dir, name))
    } catch (error) {
      return `${name} is listed and cannot be read (${(error as NodeJS.ErrnoException).code})`
    }
    if (content.length !== bytes) return `${name} has ${content.length} bytes, result.json says ${bytes}`
    if (hashOf(content) !== sha256) return `${name} has another sha256 than result.json says`
    files.set(name, sha256)
  }
  return undefined
}

/** By the plain byte to character rule, so that what is hashed again is what was there. */
function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

/** Folders of a worker beside the results. */
const OURS = ['.work', '.state']

/** Whatever must not be there when no worker is: scratch directories, temporary files, locks. */
export function findLeaks(baseDir: string): Finding[] {
  const leaks: Finding[] = []
  for (const name of list(join(baseDir, '.work'))) {
    const inside = list(join(baseDir, '.work', name))
    leaks.push({
      id: `.work/${name}`,
      detail: inside.length === 0 ? 'empty' : `holds ${inside.slice(0, 5).join(', ')}`,
    })
  }
  for (const name of list(baseDir)) {
    if (name.startsWith('.') && !OURS.includes(name))
      leaks.push({ id: name, detail: 'was left in the result directory' })
    if (!/^[0-9a-f]{2}$/.test(name)) continue
    for (const job of list(join(baseDir, name))) {
      // No output begins with a dot: these are temporary files and locks.
      for (const file of list(join(baseDir, name, job)).filter((entry) => entry.startsWith('.'))) {
        leaks.push({ id: job, detail: `${file} was left in the job's directory` })
      }
    }
  }
  return leaks
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
