/**
 * Which algorithms this machine seems to have: the names of their folders, for hints and completions. No manifest is
 * read, which would take its time; a worker, which reads them, may know others.
 */

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { type ConfigSources, findAlgorithmDirs } from '../config.ts'
import { TYPE_PATTERN } from '../job/package.ts'
import { MANIFEST } from '../run/yaml.ts'

/** Sorted; folders that cannot be read, and an rc file that is broken, are somebody else's to tell. */
export async function listAlgorithmNames(sources: Pick<ConfigSources, 'file'>): Promise<string[]> {
  const found = (await findAlgorithmDirs(sources)).flatMap(listFolders)
  return [...new Set(found)].sort()
}

/** In this turn: a few folders are read sooner than Node has started its threads for it. */
function listFolders(dir: string): string[] {
  // Samples may lie beside the algorithms: what has no manifest is none.
  return listNames(dir).filter((name) => TYPE_PATTERN.test(name) && existsSync(join(dir, name, MANIFEST)))
}

function listNames(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
