/** Algorithms: found by their manifests, one `algorithm.yaml` in each folder of an algorithm directory. */

import { accessSync, constants, statSync } from 'node:fs'
import { access, open, readdir, readFile, stat } from 'node:fs/promises'
import { delimiter, isAbsolute, join, resolve } from 'node:path'
import * as v from 'valibot'
import { formatBytes, parseBytes } from '../job/bytes.ts'
import { describe, excerpt, TYPE_PATTERN, typeProblem } from '../job/package.ts'
import { findRestraint, type Limits, type Restraint } from './limits.ts'
import { type AlgorithmUser, findUser } from './user.ts'
import { MANIFEST, MAX_YAML_BYTES, readYaml } from './yaml.ts'

export interface Algorithm {
  readonly name: string
  readonly version: string
  readonly description: string
  /** its own folder, absolute */
  readonly dir: string
  /** argv; `{ttr} {uuid} {attempt} {dir} {node}` are replaced inside each element */
  readonly command: readonly string[]
  /** patterns of the files that are published; undefined: all that do not begin with a dot */
  readonly outputs: readonly string[] | undefined
  readonly output: 'auto' | 'json' | 'text'
  readonly maxAttempts: number | undefined
  /** exit codes beside 65 that no retry can help */
  readonly permanentExits: readonly number[]
  readonly env: Readonly<Record<string, string>>
  /** rc keys whose values the algorithm gets in the file `.settings.json` */
  readonly settings: readonly string[]
  /** kept by the kernel; undefined: none */
  readonly limits?: Limits | undefined
  /** how they are kept; undefined: there are none */
  readonly restraint?: Restraint | undefined
  /** whom it runs as; undefined: as the worker */
  readonly user?: AlgorithmUser | undefined
  /** one process for many jobs (warm.ts), a new one after so many; undefined: a process for each run */
  readonly warm?: { readonly maxJobs: number } | undefined
}

/** What the algorithm folders hold. */
export interface Catalogue {
  readonly algorithms: ReadonlyMap<string, Algorithm>
  /** name -> why it cannot be run; jobs for it are buried with that reason */
  readonly broken: ReadonlyMap<string, string>
  /** folders that cannot be read, names that stand twice */
  readonly problems: readonly string[]
}

export interface CatalogueOptions {
  readonly dirs: readonly string[]
  /** the PATH that algorithms run with */
  readonly path: string
  /** rc keys that a manifest may name under `settings` */
  readonly shareable: readonly string[]
  /** of cgroup v2, which hold for each run; none: there are no groups */
  readonly controllers?: readonly string[]
}

const MAX_SHOWN_KEY = 80
const MAX_SHOWN_ISSUES = 10

/** A manifest that cannot be used, or a program that is not there. */
export class AlgorithmError extends Error {
  /** the name in the manifest, when that could be read */
  readonly algorithm: string | undefined

  constructor(message: string, options: { algorithm?: string; cause?: unknown } = {}) {
    super(message, { cause: options.cause })
    this.name = 'AlgorithmError'
    this.algorithm = options.algorithm
  }
}

/** Reads all manifests. Never throws: what is wrong stands in the catalogue. */
export async function findAlgorithms(options: CatalogueOptions): Promise<Catalogue> {
  const algorithms = new Map<string, Algorithm>()
  const broken = new Map<string, string>()
  const problems: string[] = []
  for (const dir of options.dirs) {
    for (const folder of await foldersOf(dir, problems)) {
      try {
        const algorithm = await readAlgorithm(join(dir, folder), folder, options)
        if (algorithms.has(algorithm.name)) {
          problems.push(
            `${join(dir, folder)}: algorithm ${algorithm.name} is there already, in ${algorithms.get(algorithm.name)?.dir}; the first one is used`,
          )
        } else {
          const shadowed = broken.get(algorithm.name)
          if (shadowed !== undefined) problems.push(`${shadowed}; ${algorithm.dir} is used in its place`)
          algorithms.set(algorithm.name, algorithm)
          broken.delete(algorithm.name)
        }
      } catch (error) {
        if (!(error instanceof AlgorithmError)) throw error
        const name = error.algorithm ?? folder
        const used = algorithms.get(name)
        if (used !== undefined) problems.push(`${error.message}; ${used.dir} is used in its place`)
        else if (!broken.has(name)) broken.set(name, error.message)
      }
    }
  }
  return { algorithms, broken, problems }
}

async function foldersOf(dir: string, problems: string[]): Promise<string[]> {
  try {
    const entries = await readdir(dir, { withFileTypes: true })
    const folders = entries.filter((entry) => !entry.isFile() && !entry.name.startsWith('.')).map((entry) => entry.name)
    const withManifest: string[] = []
    for (const folder of folders.sort()) {
      // Any other obstacle than absence is told when the manifest is read.
      const absent = await stat(join(dir, folder, MANIFEST)).then(() => false, isAbsence)
      if (!absent) withManifest.push(folder)
    }
    return withManifest
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    problems.push(`ALGORITHM_DIRS: folder ${dir} cannot be read (${code}); create it, or take it out of ALGORITHM_DIRS`)
    return []
  }
}

async function isReadable(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}

function isAbsence(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'ENOENT' || code === 'ENOTDIR'
}

// Each message completes the sentence "<key> must be ...".
const TEXT = v.string('must be text; in quotes, if it looks like a number')
const ARGUMENT = v.pipe(
  TEXT,
  v.check((s) => !s.includes('\0'), 'must not hold a NUL byte'),
)
const WHOLE_ATTEMPTS = 'must be a whole number from 1 to 1000'
const EXIT_CODE_WORDS = 'must be an exit code from 1 to 255'
const EXIT_CODE = v.pipe(
  v.number(EXIT_CODE_WORDS),
  v.integer(EXIT_CODE_WORDS),
  v.minValue(1, EXIT_CODE_WORDS),
  v.maxValue(255, EXIT_CODE_WORDS),
)

function whole(min: number, max: number) {
  const words = `must be a whole number from ${min} to ${max}`
  return v.optional(v.pipe(v.number(words), v.integer(words), v.minValue(min, words), v.maxValue(max, words)))
}

function size(min: number) {
  const words = `must be a number of bytes such as 1048576, 512KiB, 64MiB or 1GiB, and at least ${formatBytes(min)}`
  return v.optional(
    v.pipe(
      v.union([v.number(), v.string()], words),
      v.rawTransform<number | string, number>(({ dataset, addIssue, NEVER }) => {
        try {
          const value = parseBytes(dataset.value)
          if (value >= min) return value
        } catch {}
        addIssue({ message: words })
        return NEVER
      }),
    ),
  )
}

/** Less than these, and hardly a program starts: measured with sh, awk and Python. Node.js needs 48 MiB and 20 files. */
const LIMITS_SCHEMA = v.pipe(
  v.strictObject({
    memory: size(4 * 2 ** 20),
    cpu_seconds: whole(1, 1e9),
    processes: whole(1, 1e6),
    file_size: size(1024),
    open_files: whole(8, 1e6),
  }),
  v.transform(
    (limits): Limits => ({
      memoryBytes: limits.memory,
      cpuSeconds: limits.cpu_seconds,
      processes: limits.processes,
      fileSizeBytes: limits.file_size,
      openFiles: limits.open_files,
    }),
  ),
)

const DEFAULT_MAX_JOBS = 1000

const MANIFEST_SCHEMA = v.strictObject({
  name: v.optional(
    v.pipe(TEXT, v.regex(TYPE_PATTERN, 'must be 1 to 64 of a-z 0-9 _ . - and begin with a letter or digit')),
  ),
  version: v.optional(
    v.union([v.string(), v.pipe(v.number(), v.transform(String))], 'must be text such as "1.0"'),
    '0',
  ),
  description: v.optional(TEXT, ''),
  command: v.pipe(
    v.array(ARGUMENT, 'must be a list: the program and its arguments, such as ["./run.sh", "{ttr}"]'),
    v.minLength(1, 'must have at least one element: the program'),
    v.check((command) => command[0] !== '', 'must begin with a program, not with empty text'),
  ),
  outputs: v.optional(
    v.array(
      v.pipe(
        TEXT,
        v.check((s) => s !== '' && !s.includes('/'), 'must be names or patterns such as "*.svg", without a slash'),
      ),
      'must be a list of names or patterns such as ["*.svg"]',
    ),
  ),
  output: v.optional(v.picklist(['auto', 'json', 'text'], 'must be auto, json or text'), 'auto'),
  max_attempts: v.optional(
    v.pipe(
      v.number(WHOLE_ATTEMPTS),
      v.integer(WHOLE_ATTEMPTS),
      v.minValue(1, WHOLE_ATTEMPTS),
      v.maxValue(1000, WHOLE_ATTEMPTS),
    ),
  ),
  permanent_exits: v.optional(v.array(EXIT_CODE, 'must be a list of exit codes'), []),
  env: v.optional(
    v.record(
      v.pipe(
        v.string(),
        v.regex(/^(?!QWORKER_)[A-Za-z_][A-Za-z0-9_]*$/, 'must be names of variables that do not begin with QWORKER_'),
      ),
      v.union(
        [ARGUMENT, v.pipe(v.number(), v.transform(String)), v.pipe(v.boolean(), v.transform(String))],
        'must be text',
      ),
      'must be lines like NAME: value',
    ),
    {},
  ),
  settings: v.optional(v.array(TEXT, 'must be a list of rc keys'), []),
  mode: v.optional(v.picklist(['once', 'warm'], 'must be once or warm'), 'once'),
  max_jobs: whole(1, 1e9),
  limits: v.optional(LIMITS_SCHEMA),
  user: v.optional(
    v.pipe(TEXT, v.regex(/^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/, 'must be the name of a user, not a number')),
  ),
})

/**
 * Reads one manifest.
 * @throws AlgorithmError naming the file, the key and what is expected
 */
async function readAlgorithm(dir: string, folder: string, options: CatalogueOptions): Promise<Algorithm> {
  const file = join(dir, MANIFEST)
  const checked = v.safeParse(MANIFEST_SCHEMA, await readManifest(file))
  if (!checked.success) {
    const issues = checked.issues.slice(0, MAX_SHOWN_ISSUES)
    throw new AlgorithmError(issues.map((issue) => `${file}: ${wording(issue)}`).join('; '))
  }
  const manifest = checked.output
  const name = manifest.name ?? folder
  if (!TYPE_PATTERN.test(name))
    throw new AlgorithmError(
      `${file}: the name of the folder is its type: ${typeProblem(name)}; give a name: in the manifest`,
    )
  const foreign = manifest.settings.find((key) => !options.shareable.includes(key))
  if (foreign !== undefined) {
    throw new AlgorithmError(
      `${file}: settings: ${describe(foreign)} is not handed to algorithms; these are: ${options.shareable.join(', ')}`,
      { algorithm: name },
    )
  }
  const clash = findClash(manifest)
  if (clash !== undefined) throw new AlgorithmError(`${file}: ${clash}`, { algorithm: name })
  const algorithm: Algorithm = {
    name,
    version: manifest.version,
    description: manifest.description,
    dir: resolve(dir),
    command: manifest.command,
    outputs: manifest.outputs,
    output: manifest.output,
    maxAttempts: manifest.max_attempts,
    permanentExits: manifest.permanent_exits,
    env: manifest.env,
    settings: manifest.settings,
    ...(manifest.mode === 'warm' && { warm: { maxJobs: manifest.max_jobs ?? DEFAULT_MAX_JOBS } }),
    ...(await findRestraints(file, name, manifest, options)),
  }
  await checkProgram(algorithm, options.path)
  return algorithm
}

/** Keys that do not go together with the mode. */
function findClash({ mode, max_jobs, command, output, limits }: v.InferOutput<typeof MANIFEST_SCHEMA>) {
  if (mode === 'once')
    return max_jobs === undefined ? undefined : 'max_jobs is for mode: warm; add that, or leave it out'
  const ofOneJob = command.map((part) => /\{(ttr|uuid|attempt)\}/.exec(part)?.[0]).find(Boolean)
  if (ofOneJob !== undefined)
    return `command must not have ${ofOneJob} with mode: warm: it stands in the line of each job, as the process serves many`
  if (output === 'text')
    return 'output must not be text with mode: warm: an answer is JSON, and a text in it a JSON string'
  if (limits?.cpuSeconds !== undefined)
    return 'limits.cpu_seconds must not be given with mode: warm: it would count over all jobs of a process; the TTR ends a job'
  return undefined
}

/** @throws AlgorithmError when this worker cannot keep a limit, or not become the user */
async function findRestraints(
  file: string,
  algorithm: string,
  { limits, user: userName }: v.InferOutput<typeof MANIFEST_SCHEMA>,
  { path, controllers = [] }: CatalogueOptions,
): Promise<Pick<Algorithm, 'limits' | 'restraint' | 'user'>> {
  const user = userName === undefined ? undefined : await findUser(userName)
  if (user !== undefined && 'problem' in user) throw new AlgorithmError(`${file}: ${user.problem}`, { algorithm })
  if (limits === undefined || Object.values(limits).every((limit) => limit === undefined)) return { user }
  const restraint = await findRestraint(limits, path, user, controllers)
  if ('problem' in restraint) throw new AlgorithmError(`${file}: ${restraint.problem}`, { algorithm })
  return { limits, restraint, user }
}

async function readManifest(file: string): Promise<unknown> {
  try {
    const stats = await stat(file)
    if (!stats.isFile()) throw new AlgorithmError(`${file}: is no file`)
    if (stats.size > MAX_YAML_BYTES) throw new AlgorithmError(`${file}: is larger than ${MAX_YAML_BYTES} bytes`)
    const yaml = await readYaml(await readFile(file, 'utf8'))
    if ('faults' in yaml) throw new AlgorithmError(`${file}: ${yaml.faults.join('; ')}`)
    // The schema takes a list for an object with the keys 0, 1, ...
    return Array.isArray(yaml.value) ? null : yaml.value
  } catch (cause) {
    if (cause instanceof AlgorithmError) throw cause
    throw new AlgorithmError(`${file}: ${String((cause as Error).message).split('\n', 1)[0]}`, { cause })
  }
}

function wording(issue: v.BaseIssue<unknown>): string {
  const path = v.getDotPath(issue)
  const key = path === null ? null : excerpt(path, MAX_SHOWN_KEY)
  if (issue.type === 'strict_object' && issue.expected === 'never') {
    const known = key?.startsWith('limits.') ? LIMITS_SCHEMA.pipe[0].entries : MANIFEST_SCHEMA.entries
    return `unknown key ${key}; known are ${Object.keys(known).join(', ')}`
  }
  if (issue.type === 'strict_object' && key === 'limits') return 'limits must hold lines like memory: 512MiB'
  if (issue.type === 'strict_object') return key === null ? 'must hold lines like key: value' : `${key} is missing`
  return `${key} ${issue.message}`
}

/** @throws AlgorithmError when the program, or a file of the folder that its arguments name, is not there */
async function checkProgram(algorithm: Algorithm, path: string): Promise<void> {
  const [program = '', ...args] = algorithm.command
  resolveProgram(algorithm, program, path)
  for (const arg of args) {
    if (!arg.startsWith('{dir}/') || /\{(ttr|uuid|attempt)\}/.test(arg)) continue
    const file = arg.replaceAll('{dir}', () => algorithm.dir)
    if (!(await isReadable(file)))
      throw new AlgorithmError(`algorithm ${algorithm.name}: ${file}, an argument of its command, is not there`, {
        algorithm: algorithm.name,
      })
  }
}

/**
 * Finds the program of an algorithm: a path is relative to its folder, a bare name is looked up in PATH.
 * @throws AlgorithmError when there is none, or it may not be executed
 */
export function resolveProgram(algorithm: Algorithm, program: string, path: string): string {
  const named = program.replaceAll('{dir}', () => algorithm.dir).replaceAll('{node}', () => process.execPath)
  const fail = (problem: string) =>
    new AlgorithmError(`algorithm ${algorithm.name}: its program ${problem}`, { algorithm: algorithm.name })
  if (named.includes('/')) {
    const file = isAbsolute(named) ? named : join(algorithm.dir, named)
    const problem = executableProblem(file)
    if (problem !== undefined) throw fail(`${file} ${problem}`)
    return file
  }
  for (const dir of path.split(delimiter)) {
    const file = join(dir, named)
    if (isAbsolute(file) && executableProblem(file) === undefined) return file
  }
  const remedy = `install it, or write a path (a file of the algorithm's folder as ./${named})`
  throw fail(`${describe(named)} is not in PATH (${path}); ${remedy}`)
}

/** Synchronous: asked for each run, and answered from memory. */
function executableProblem(file: string): string | undefined {
  try {
    const stats = statSync(file, { throwIfNoEntry: false })
    if (stats === undefined) return 'is not there'
    if (!stats.isFile()) return 'is no file'
    accessSync(file, constants.X_OK)
    return undefined
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'ENOENT' || code === 'ENOTDIR') return 'is not there'
    if (code === 'EACCES') return `is not executable; allow it with: chmod +x ${file}`
    return `cannot be used (${code})`
  }
}

/** Says why a program that is there and may be executed did not start; undefined when it is none of the usual reasons. */
export async function explainStartFailure(file: string, code: string): Promise<string | undefined> {
  if (code !== 'ENOENT' && code !== 'EACCES') return undefined
  const [, line = ''] = /^#!([^\n]*)/.exec(await readHead(file)) ?? []
  const [interpreter] = line.trim().split(/\s/, 1)
  if (!interpreter) return undefined
  if (line.endsWith('\r'))
    return `its first line, #!${line.trim()}, ends with a carriage return; save it with Unix line ends`
  return `${interpreter}, which its first line names, ${code === 'ENOENT' ? 'is not there' : 'is not executable'}`
}

/** The same for a program that something else was to become by exec(2), and that may have ended by itself. */
export async function findStartFailure(file: string): Promise<string | undefined> {
  const problem = executableProblem(file)
  if (problem !== undefined) return `it ${problem}`
  const [, line = ''] = /^#!([^\n]*)/.exec(await readHead(file)) ?? []
  // A carriage return is part of the name, for the kernel.
  const [interpreter] = line.replace(/^[ \t]+/, '').split(/[ \t]/, 1)
  if (!interpreter) return undefined
  const code = await access(interpreter, constants.X_OK).then(
    () => undefined,
    (error: NodeJS.ErrnoException) => error.code,
  )
  return code === undefined ? undefined : explainStartFailure(file, code)
}

async function readHead(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(() => undefined)
  try {
    const head = await file?.read(Buffer.alloc(256), 0, 256, 0)
    return head?.buffer.toString('latin1', 0, head.bytesRead) ?? ''
  } finally {
    await file?.close()
  }
}

/** The argv of one run, placeholders replaced. The first element is still to be resolved. */
export function commandFor(algorithm: Algorithm, values: { ttr: number; uuid: string; attempt: number }): string[] {
  const replacements: Record<string, string> = {
    ttr: String(values.ttr),
    uuid: values.uuid,
    attempt: String(values.attempt),
    dir: algorithm.dir,
    node: process.execPath,
  }
  return algorithm.command.map((part) =>
    part.replace(/\{(ttr|uuid|attempt|dir|node)\}/g, (_, key: string) => replacements[key] ?? ''),
  )
}
