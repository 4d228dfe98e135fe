/** Where a demo lives: a temporary folder with an rc file, and free ports. */

import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { freePort } from '../../sailor/torture/broker.ts'

export const RESULTS_FOLDER = 'results'

export interface Room {
  readonly folder: string
  readonly rcFile: string
}

/**
 * @param httpPort undefined: a free one
 * @throws what the file system throws; nothing is left then
 */
export async function makeRoom(httpPort: number | undefined): Promise<Room> {
  const folder = await mkdtemp(join(resolve(tmpdir()), 'qworker-demo-'))
  try {
    const settings = {
      BEANSTALK_SERVER: 'embedded',
      BEANSTALK_PORT: await freePort(),
      // Beside the rc file.
      RESULT_BASEDIR: RESULTS_FOLDER,
      HTTP_PORT: httpPort ?? (await freePort()),
      CONCURRENCY: 2,
      // Who ends a demo does not wait for its jobs.
      DRAIN_TIME: 0,
      LOG_FORMAT: 'json',
    }
    const rcFile = join(folder, 'qworkerrc')
    const lines = Object.entries(settings).map(([key, value]) => `${key}: ${value}\n`)
    await writeFile(rcFile, lines.join(''))
    await mkdir(join(folder, RESULTS_FOLDER))
    return { folder, rcFile }
  } catch (error) {
    await removeRoom(folder)
    throw error
  }
}

export function removeRoom(folder: string): Promise<void> {
  return rm(folder, { recursive: true, force: true, maxRetries: 5 })
}
