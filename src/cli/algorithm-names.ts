/**
 * Which algorithms this machine seems to have: the names of their folders, for hints and completions. No manifest is
 * read, which would take its time; a worker, which reads them, may know others.
 */

import { readdir } from 'node:fs/promises'
import { type ConfigSources, findAlgorithmDirs } from '../config.ts'
import { TYPE_PATTERN } from '../job/package.ts'

/** Sorted; folders that cannot be read, and an rc file that is broken, are somebody else's to tell. */
export async function listAlgorithmNames(sources: Pick<ConfigSources, 'file'>): Promise<string[]> {
  const dirs = await findAlgorithmDirs(sources)
  const found = await Promise.all(dirs.map((dir) => readdir(dir, { withFileTypes: true }).catch(() => [])))
  const names = found.flat().filter((entry) => !entry.isFile() && TYPE_PATTERN.test(entry.name))
  return [...new Set(names.map(({ name }) => name))].sort()
}
