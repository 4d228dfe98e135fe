/**
 * Which algorithms this machine seems to have: the names of their folders, for hints and completions. No manifest is
 * read, which would take its time; a worker, which reads them, may know others.
 */

import { access, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { type ConfigSources, findAlgorithmDirs } from '../config.ts'
import { TYPE_PATTERN } from '../job/package.ts'
import { MANIFEST } from '../run/yaml.ts'

/** Sorted; folders that cannot be read, and an rc file that is broken, are somebody else's to tell. */
export async function listAlgorithmNames(sources: Pick<ConfigSources, 'file'>): Promise<string[]> {
  const found = await Promise.all((await findAlgorithmDirs(sources)).map(listFolders))
  return [...new Set(found.flat())].sort()
}

/** Samples may lie beside the algorithms: what has no manifest is none. */
async function listFolders(dir: string): Promise<string[]> {
  const names = (await readdir(dir).catch(() => [])).filter((name) => TYPE_PATTERN.test(name))
  const isThere = (name: string) =>
    access(join(dir, name, MANIFEST)).then(
      () => true,
      () => false,
    )
  const areThere = await Promise.all(names.map(isThere))
  return names.filter((_, i) => areThere[i])
}
