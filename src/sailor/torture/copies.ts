/** What S3 holds of complete jobs: asked of our stand-in itself, or of the deployment's bucket past the faults. */

import { createHash } from 'node:crypto'
import { openS3Store, type S3Options } from '../../store/store.ts'
import type { StandIn } from './bucket.ts'
import type { Manifest } from './results.ts'
import type { Finding } from './verdict.ts'

export interface Copies {
  compare(uuid: string, files: Manifest): Promise<'same' | 'missing' | 'different'>
  /** results of one job that were stored one over the other, with different bytes */
  replaced(uuids: Iterable<string>): Finding[]
  close(): Promise<void>
}

export function copiesInStandIn(standIn: StandIn, prefix: string): Copies {
  return {
    compare: async (uuid, files) => {
      for (const [name, sha256] of files) {
        const stored = standIn.find(`${prefix}${uuid}/${name}`)
        if (stored === undefined) return 'missing'
        if (stored.sha256 !== sha256) return 'different'
      }
      return 'same'
    },
    replaced: (uuids) => {
      const found: Finding[] = []
      for (const uuid of uuids) {
        const bodies = standIn.history(`${prefix}${uuid}/result.json`)
        if (bodies.length > 1) found.push({ id: uuid, detail: `S3 was given ${bodies.length} different result.json` })
      }
      return found
    },
    close: async () => undefined,
  }
}

/** Of a deployment only the documents are compared: outputs may be large, and the network slow. */
export async function copiesInBucket(options: S3Options): Promise<Copies> {
  const store = await openS3Store(options)
  return {
    compare: async (uuid, files) => {
      const text = await store.read(uuid, 'result.json')
      if (text === undefined) return 'missing'
      return createHash('sha256').update(text).digest('hex') === files.get('result.json') ? 'same' : 'different'
    },
    replaced: () => [],
    close: () => store.close(),
  }
}
