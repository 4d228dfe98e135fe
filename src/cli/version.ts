import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/** From package.json, two folders up from `src/cli` and `dist/cli` alike. */
export const VERSION: string = JSON.parse(
  readFileSync(join(import.meta.dirname, '..', '..', 'package.json'), 'utf8'),
).version
