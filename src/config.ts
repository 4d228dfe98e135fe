/**
 * Configuration: flag > environment > rc file > default, checked whole and frozen. The only file that reads the
 * environment. A key is added by a line in SETTINGS, a value in DEFAULTS and a line in `etc/` (a test compares them).
 */

import { dirname, isAbsolute, join, resolve } from 'node:path'
import { formatBytes, parseBytes } from './job/bytes.ts'
import { parseDuration } from './job/duration.ts'
import { describe } from './job/package.ts'
import { isTubeName } from './queue/queue.ts'
import { findDouble, makeServers, parseServers } from './queue/servers.ts'
import { didYouMean } from './report/suggestion.ts'
import { readSmallFile } from './run/small-file.ts'
import { MAX_YAML_BYTES, readYaml } from './run/yaml.ts'

export interface Config {
  /** `host` or `host:port`, or several, which share the jobs; or `embedded`: the worker is the broker, for this machine */
  readonly BEANSTALK_SERVER: string | readonly string[]
  readonly BEANSTALK_PORT: number
  /** of the embedded broker: when its journal is synced to the disk, and the largest job that it takes, in bytes */
  readonly BROKER_FSYNC: 'each' | 'interval' | 'never'
  readonly BROKER_MAX_JOB: number
  /** where `qproducer` puts; PRIORITY 0 is most urgent; DELAY and TTR in seconds */
  readonly TUBE: string
  readonly PRIORITY: number
  readonly DELAY: number
  readonly TTR: number
  /** where `qworker` takes from */
  readonly TUBES: readonly string[]
  /** slots of a worker; `auto` is one for each processor */
  readonly CONCURRENCY: number | 'auto'
  /** seconds that a run may last beyond its TTR */
  readonly GRACE_TIME: number
  /** seconds that running jobs get when the worker is asked to stop */
  readonly DRAIN_TIME: number
  readonly MAX_ATTEMPTS: number
  /** seconds before the second attempt; doubled for each further one, up to RETRY_DELAY_MAX */
  readonly RETRY_DELAY: number
  readonly RETRY_DELAY_MAX: number
  /** bytes that a run may write to each of stdout and stderr, and to its scratch directory */
  readonly MAX_OUTPUT: number
  readonly MAX_SCRATCH: number
  /** folders that hold one folder for each algorithm; `builtin` is the one that comes with qworker */
  readonly ALGORITHM_DIRS: readonly string[]
  readonly RESULT_BASEDIR: string
  /** without a slash at its end; in an rc file `auto` is this machine's HTTP_PORT */
  readonly RESULT_BASEURL: string
  readonly HTTP_HOST: string
  readonly HTTP_PORT: number | 'off'
  readonly S3_BUCKET: string | null
  readonly S3_PREFIX: string
  readonly S3_ENDPOINT: string | null
  readonly S3_REGION: string
  readonly S3_FORCE_PATH_STYLE: boolean
  /** seconds that a finished job waits in the queue for its copy on S3 */
  readonly S3_PATIENCE: number
  readonly SMTP_HOST: string | null
  readonly SMTP_PORT: number
  readonly SMTP_SECURE: 'none' | 'starttls' | 'tls'
  readonly SMTP_USER: string | null
  readonly SMTP_PASSWORD: string | null
  readonly SMTP_FROM: string | null
  readonly LOG_LEVEL: 'debug' | 'info' | 'warn' | 'error'
  readonly LOG_FORMAT: 'auto' | 'text' | 'json'
}

export type ConfigKey = keyof Config

export const DEFAULTS: Config = freeze<Config>({
  BEANSTALK_SERVER: 'localhost',
  BEANSTALK_PORT: 11300,
  BROKER_FSYNC: 'interval',
  BROKER_MAX_JOB: 65_535,
  TUBE: 'default',
  PRIORITY: 1337,
  DELAY: 0,
  TTR: 60,
  TUBES: ['default'],
  CONCURRENCY: 'auto',
  GRACE_TIME: 2,
  DRAIN_TIME: 63,
  MAX_ATTEMPTS: 5,
  RETRY_DELAY: 1,
  RETRY_DELAY_MAX: 3600,
  MAX_OUTPUT: 64 * 2 ** 20,
  MAX_SCRATCH: 2 ** 30,
  ALGORITHM_DIRS: ['builtin'],
  RESULT_BASEDIR: '/var/tmp/qworker',
  RESULT_BASEURL: 'auto',
  HTTP_HOST: '127.0.0.1',
  HTTP_PORT: 11380,
  S3_BUCKET: null,
  S3_PREFIX: '',
  S3_ENDPOINT: null,
  S3_REGION: 'us-east-1',
  S3_FORCE_PATH_STYLE: false,
  S3_PATIENCE: 60,
  SMTP_HOST: null,
  SMTP_PORT: 587,
  SMTP_SECURE: 'starttls',
  SMTP_USER: null,
  SMTP_PASSWORD: null,
  SMTP_FROM: null,
  LOG_LEVEL: 'info',
  LOG_FORMAT: 'auto',
})

/** What `qproducer` uses; the rest is the worker's. */
export const PRODUCER_KEYS: readonly ConfigKey[] = [
  'BEANSTALK_SERVER',
  'BEANSTALK_PORT',
  'TUBE',
  'PRIORITY',
  'DELAY',
  'TTR',
  'RESULT_BASEURL',
  'HTTP_PORT',
]
const PUT_KEYS: readonly ConfigKey[] = ['TUBE', 'PRIORITY', 'DELAY', 'TTR']

/** Keys whose values are never shown. */
const SECRETS: ReadonlySet<string> = new Set<ConfigKey>(['SMTP_PASSWORD'])

/** Keys that an algorithm may ask for in its manifest (`settings`). */
export const SHAREABLE: readonly ConfigKey[] = [
  'SMTP_HOST',
  'SMTP_PORT',
  'SMTP_SECURE',
  'SMTP_USER',
  'SMTP_PASSWORD',
  'SMTP_FROM',
]

const MAX_SECONDS = 366 * 24 * 3600

const SETTINGS: Record<ConfigKey, Check> = {
  BEANSTALK_SERVER: servers(),
  BEANSTALK_PORT: integer('a port', 1, 65535),
  BROKER_FSYNC: word('each', 'interval', 'never'),
  BROKER_MAX_JOB: bytes(64 * 2 ** 20),
  TUBE: tube(),
  PRIORITY: integer('a priority', 0, 2 ** 32 - 1),
  DELAY: seconds(0),
  TTR: seconds(1),
  TUBES: list('tube names', tube()),
  CONCURRENCY: orWord('auto', integer('a number of slots', 1, 256)),
  GRACE_TIME: seconds(0),
  DRAIN_TIME: seconds(0),
  MAX_ATTEMPTS: integer('a number of attempts', 1, 1000),
  RETRY_DELAY: seconds(0),
  RETRY_DELAY_MAX: seconds(0),
  MAX_OUTPUT: bytes(),
  MAX_SCRATCH: bytes(),
  ALGORITHM_DIRS: list('folders', text('a folder')),
  RESULT_BASEDIR: text('a folder'),
  RESULT_BASEURL: orWord('auto', httpUrl()),
  HTTP_HOST: text('a host name or address'),
  HTTP_PORT: orWord('off', integer('a port', 0, 65535)),
  S3_BUCKET: orNull(text('a bucket name: 3 to 63 of a-z 0-9 . -', (s) => /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(s))),
  S3_PREFIX: keyPrefix(),
  S3_ENDPOINT: orNull(httpUrl()),
  S3_REGION: text('a region'),
  S3_FORCE_PATH_STYLE: flag(),
  S3_PATIENCE: seconds(0),
  SMTP_HOST: orNull(text('a host name or address')),
  SMTP_PORT: integer('a port', 1, 65535),
  SMTP_SECURE: word('none', 'starttls', 'tls'),
  SMTP_USER: orNull(text('a user name')),
  SMTP_PASSWORD: orNull(text('a password')),
  SMTP_FROM: orNull(text('a mail address')),
  LOG_LEVEL: word('debug', 'info', 'warn', 'error'),
  LOG_FORMAT: word('auto', 'text', 'json'),
}

const KEYS = Object.keys(DEFAULTS) as ConfigKey[]

/** What `qworker` uses. */
export const WORKER_KEYS: readonly ConfigKey[] = KEYS.filter((key) => !PUT_KEYS.includes(key))

export type ConfigErrorCode = 'missing_file' | 'unreadable_file' | 'bad_yaml' | 'bad_value'

/** All that is wrong with a configuration, one line a problem. */
export class ConfigError extends Error {
  readonly code: ConfigErrorCode
  readonly problems: readonly string[]

  constructor(code: ConfigErrorCode, problems: readonly string[], cause?: unknown) {
    super(problems.join('\n'), { cause })
    this.name = 'ConfigError'
    this.code = code
    this.problems = problems
  }
}

export interface ConfigSources {
  /** rc file, YAML */
  readonly file?: string | undefined
  /** from the command line; undefined values do not count */
  readonly flags?: Partial<Record<ConfigKey, unknown>>
  readonly env?: Readonly<Record<string, string | undefined>>
  /**
   * Keys that the program uses; undefined: all. Others are not taken from the environment, where a name as short as
   * LOG_LEVEL may be meant for another program, and their values in an rc file are not looked at.
   */
  readonly keys?: readonly ConfigKey[] | undefined
}

/**
 * Reads and checks the configuration.
 * @throws ConfigError with every problem at once
 */
export async function loadConfig(sources: ConfigSources = {}): Promise<Config> {
  const env = sources.env ?? process.env
  const fromFile = sources.file === undefined ? {} : await readRcFile(sources.file)
  const problems: string[] = []
  for (const key of Object.keys(fromFile)) {
    if (!isKey(key)) problems.push(`${sources.file}: unknown key ${describe(key)}${didYouMean(key, KEYS)}`)
  }
  const base = sources.file === undefined ? workingFolder() : dirname(resolve(sources.file))
  const config: Record<string, unknown> = {}
  for (const key of KEYS) {
    if (sources.keys !== undefined && !sources.keys.includes(key)) {
      config[key] = atHome(key, DEFAULTS[key], base)
      continue
    }
    const [origin, value, folder] = pick(key, sources, env, fromFile, base)
    const checked = SETTINGS[key](value)
    if ('value' in checked) config[key] = atHome(key, checked.value, folder)
    else problems.push(`${origin}: ${key} must be ${checked.expected}; it is ${shown(key, value)}`)
  }
  if (problems.length === 0) problems.push(...findServerProblems(config as unknown as Config))
  if (problems.length > 0) throw new ConfigError('bad_value', problems)
  if (config.RESULT_BASEURL === 'auto') config.RESULT_BASEURL = localBaseUrl(config.HTTP_PORT as Config['HTTP_PORT'])
  return freeze(config) as unknown as Config
}

/** Whether two are one shows only with the port that those without one have. */
function findServerProblems({ BEANSTALK_SERVER, BEANSTALK_PORT }: Config): string[] {
  const double = findDouble(makeServers(BEANSTALK_SERVER, BEANSTALK_PORT))
  if (double === undefined) return []
  const why = `BEANSTALK_PORT ${BEANSTALK_PORT} holds for each without a port of its own`
  return [`BEANSTALK_SERVER names ${double.name} twice (${why}); leave one out`]
}

/** Absolute; the builtin one alone where the configuration is no help. Never throws for what stands there. */
export async function findAlgorithmDirs(sources: Omit<ConfigSources, 'keys'> = {}): Promise<readonly string[]> {
  try {
    return (await loadConfig({ ...sources, keys: ['ALGORITHM_DIRS'] })).ALGORITHM_DIRS
  } catch (error) {
    if (error instanceof ConfigError) return [BUILTIN_ALGORITHMS]
    throw error
  }
}

/** Lists too: a Config is handed to every part of a program. */
function freeze<T extends object>(config: T): T {
  for (const value of Object.values(config)) Object.freeze(value)
  return Object.freeze(config)
}

/** The environment of the worker that an algorithm may see. */
export function algorithmEnvironment(env: Readonly<Record<string, string | undefined>> = process.env) {
  const { PATH, LANG, TZ } = env
  return {
    PATH: PATH ?? '/usr/local/bin:/usr/bin:/bin',
    LANG: LANG ?? 'C.UTF-8',
    ...(TZ === undefined ? {} : { TZ }),
  }
}

/** What a program learns when it is run as an algorithm: the contract's variables. */
export function jobEnvironment(env: Readonly<Record<string, string | undefined>> = process.env) {
  return { uuid: env.QWORKER_UUID || undefined, attempt: env.QWORKER_ATTEMPT || undefined }
}

/** What stands in the environment about colours; an empty value counts as none. */
export interface TerminalEnvironment {
  /** https://no-color.org: any value */
  readonly noColor: boolean
  /** as Node reads it: 0 and false switch colours off, any other value on, also where NO_COLOR is set */
  readonly forceColor: boolean | undefined
  readonly isDumb: boolean
}

export function terminalEnvironment(
  env: Readonly<Record<string, string | undefined>> = process.env,
): TerminalEnvironment {
  const { NO_COLOR, FORCE_COLOR, TERM } = env
  return {
    noColor: Boolean(NO_COLOR),
    forceColor: FORCE_COLOR ? !['0', 'false'].includes(FORCE_COLOR) : undefined,
    isDumb: TERM === 'dumb',
  }
}

/** Whether Braille and lines can be shown, and not ASCII alone. */
export function hasGlyphs(env: Readonly<Record<string, string | undefined>> = process.env): boolean {
  const { LC_ALL, LC_CTYPE, LANG, TERM } = env
  // The console of Linux has 512 glyphs, and Braille is not among them.
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || '') && TERM !== 'dumb' && TERM !== 'linux'
}

/** What systemd tells a service of Type=notify. */
export interface ServiceEnvironment {
  /** where messages to the manager go: a path, or `@name` (abstract); undefined: nobody listens */
  readonly notifySocket: string | undefined
  /** the manager ends us when it is not fed for so long; undefined: no watchdog */
  readonly watchdogMs: number | undefined
  /** where `systemd-notify` is looked for */
  readonly path: string
}

/** What the service manager that started this process wants to hear, as in sd_notify(3) and sd_watchdog_enabled(3). */
export function serviceEnvironment(
  env: Readonly<Record<string, string | undefined>> = process.env,
  pid: number = process.pid,
): ServiceEnvironment {
  const { NOTIFY_SOCKET, WATCHDOG_USEC = '', WATCHDOG_PID = '' } = env
  const watchdogMs = /^\d{1,15}$/.test(WATCHDOG_USEC) ? Number(WATCHDOG_USEC) / 1000 : 0
  // The watchdog of a parent is not ours to feed.
  const isOurs = WATCHDOG_PID === '' || WATCHDOG_PID === String(pid)
  return {
    notifySocket: NOTIFY_SOCKET || undefined,
    watchdogMs: isOurs && watchdogMs > 0 ? watchdogMs : undefined,
    path: algorithmEnvironment(env).PATH,
  }
}

/** The configuration as YAML, beginning with `--- ` as it has always been; secrets are not shown. */
export function describeConfig(config: Config, keys: readonly ConfigKey[] = KEYS): string {
  const lines = keys.map(
    (key) => `${key}: ${SECRETS.has(key) && config[key] !== null ? '"***"' : JSON.stringify(config[key])}`,
  )
  return `--- \n${lines.join('\n')}\n`
}

function isKey(name: string): name is ConfigKey {
  return Object.hasOwn(DEFAULTS, name)
}

async function readRcFile(file: string): Promise<Record<string, unknown>> {
  const yaml = await readYaml(await readSource(file))
  if ('faults' in yaml) {
    throw new ConfigError(
      'bad_yaml',
      yaml.faults.map((fault) => `${file}: bad YAML: ${fault}`),
    )
  }
  const { value } = yaml
  if (value === null || value === undefined) return {}
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw new ConfigError('bad_yaml', [`${file}: must hold lines like KEY: value; it holds ${describe(value)}`])
  }
  return value as Record<string, unknown>
}

/** @throws ConfigError where somebody has removed it meanwhile */
function workingFolder(): string {
  try {
    return process.cwd()
  } catch (cause) {
    throw new ConfigError('missing_file', ['the folder that this was called in is gone; change to another (cd)'], cause)
  }
}

async function readSource(file: string): Promise<string> {
  let source: Buffer | undefined
  try {
    source = await readSmallFile(file, MAX_YAML_BYTES)
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    if (code === 'ENOENT' || code === 'ENOTDIR') {
      throw new ConfigError(
        'missing_file',
        [`${file}: no such file; give an rc file with -c, or leave -c out to use the defaults`],
        cause,
      )
    }
    throw new ConfigError(
      'unreadable_file',
      [`${file}: cannot be read (${code}); check that it is a file and that this user may read it`],
      cause,
    )
  }
  if (source === undefined)
    throw new ConfigError('bad_yaml', [`${file}: is no rc file: it has more than ${MAX_YAML_BYTES} bytes`])
  return source.toString('utf8')
}

/** Where a value comes from, the value, and the folder that a relative path in it is relative to. */
function pick(
  key: ConfigKey,
  sources: ConfigSources,
  env: Readonly<Record<string, string | undefined>>,
  fromFile: Record<string, unknown>,
  base: string,
): [string, unknown, string] {
  const flag = sources.flags?.[key]
  if (flag !== undefined) return ['command line', flag, process.cwd()]
  const variable = env[key]
  if (variable !== undefined && variable !== '') return [`environment variable ${key}`, variable, process.cwd()]
  if (Object.hasOwn(fromFile, key)) return [sources.file ?? 'rc file', fromFile[key], base]
  return ['default', DEFAULTS[key], base]
}

/** Where a worker on this machine with its default port serves. */
export const LOCAL_BASEURL = `http://localhost:${DEFAULTS.HTTP_PORT}`

/** What `auto` stands for. */
export function localBaseUrl(port: Config['HTTP_PORT']): string {
  return typeof port === 'number' && port > 0 ? `http://localhost:${port}` : LOCAL_BASEURL
}

function atHome(key: ConfigKey, value: unknown, folder: string): unknown {
  if (key === 'RESULT_BASEDIR') return absolute(value as string, folder)
  if (key !== 'ALGORITHM_DIRS') return value
  return (value as string[]).map((dir) => (dir === 'builtin' ? BUILTIN_ALGORITHMS : absolute(dir, folder)))
}

function absolute(path: string, folder: string): string {
  return isAbsolute(path) ? path : join(folder, path)
}

/** From `src/` in a checkout and from `dist/` in an installation alike. */
const BUILTIN_ALGORITHMS = resolve(import.meta.dirname, '..', 'algorithms')

function shown(key: string, value: unknown): string {
  if (SECRETS.has(key)) return 'not shown'
  return Array.isArray(value) && value.length > 0 ? value.map(describe).join(', ') : describe(value)
}

// Each expectation completes the sentence "KEY must be ...". Text is taken for numbers everywhere: the environment has
// nothing else, and older rc files quote their ports.

/** What a value comes to, or what was expected instead. */
type Checked<T = unknown> = { readonly value: T } | { readonly expected: string }
type Check<T = unknown> = (value: unknown) => Checked<T>

function text(expected: string, accepts: (value: string) => boolean = () => true): Check<string> {
  return (value) => {
    const isText = typeof value === 'string' && value.length > 0 && value.length <= 4096
    return isText && !/[\u0000-\u001f\u007f]/.test(value) && accepts(value) ? { value } : { expected }
  }
}

function integer(what: string, min: number, max: number): Check<number> {
  const expected = `${what}, a whole number from ${min} to ${max}`
  return (given) => {
    const value = typeof given === 'string' && /^\d{1,15}$/.test(given) ? Number(given) : given
    return isNumber(value) && Number.isInteger(value) && value >= min && value <= max ? { value } : { expected }
  }
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number'
}

function seconds(min: number): Check<number> {
  const expected = `a duration of at least ${min} seconds such as 90, 90s, 5m or 2h`
  return quantity(parseDuration, min, MAX_SECONDS, expected)
}

function bytes(most = Number.MAX_SAFE_INTEGER): Check<number> {
  const limit = most === Number.MAX_SAFE_INTEGER ? '' : `, at most ${formatBytes(most)}`
  const expected = `a number of bytes such as 1048576, 512KiB, 64MiB or 1GiB${limit}`
  return quantity(parseBytes, 1024, most, expected)
}

function quantity(
  parse: (value: string | number) => number,
  min: number,
  max: number,
  expected: string,
): Check<number> {
  return (given) => {
    if (typeof given !== 'string' && !isNumber(given)) return { expected }
    try {
      const value = parse(given)
      if (value >= min && value <= max) return { value }
    } catch {}
    return { expected }
  }
}

function servers(): Check<string | readonly string[]> {
  return (given) => {
    try {
      return { value: parseServers(given) }
    } catch (error) {
      return { expected: `a host, host:port or [IPv6]:port, or a list of these (${(error as Error).message})` }
    }
  }
}

function word(...words: readonly string[]): Check<string> {
  return (value) =>
    typeof value === 'string' && words.includes(value) ? { value } : { expected: `one of ${words.join(', ')}` }
}

function orWord(name: string, check: Check): Check {
  return (given) => {
    // YAML 1.1 readers, and people, write `off` for false.
    if (given === name || (given === false && name === 'off')) return { value: name }
    const checked = check(given)
    return 'value' in checked ? checked : { expected: `${name}, or ${checked.expected}` }
  }
}

function orNull(check: Check): Check {
  return (value) => (value === null ? { value } : check(value))
}

function flag(): Check<boolean> {
  return (value) => {
    const isFlag = value === true || value === false || value === 'true' || value === 'false'
    return isFlag ? { value: value === true || value === 'true' } : { expected: 'true or false' }
  }
}

function tube(): Check<string> {
  return text('a tube name: up to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -', isTubeName)
}

/** A YAML list, or text with commas. */
function list(what: string, check: Check): Check {
  return (given) => {
    const values: unknown = typeof given === 'string' ? given.split(',').map((part) => part.trim()) : given
    if (!Array.isArray(values) || values.length < 1 || values.length > 100) {
      return { expected: `a list of 1 to 100 ${what}` }
    }
    const bad = values.map(check).find((checked) => 'expected' in checked)
    return bad === undefined ? { value: [...new Set(values)] } : { expected: `a list of ${what}, each ${bad.expected}` }
  }
}

function httpUrl(): Check<string> {
  const expected = 'a URL that begins with http:// or https://'
  return (value) => {
    const url = typeof value === 'string' && URL.canParse(value) ? new URL(value) : undefined
    if (url?.protocol !== 'http:' && url?.protocol !== 'https:') return { expected }
    const isBare = url.username === '' && url.search === '' && url.hash === ''
    if (!isBare) return { expected: `${expected}, without a user, a query or a fragment` }
    return { value: String(value).replace(/\/+$/, '') }
  }
}

function keyPrefix(): Check<string> {
  const expected = 'a prefix of S3 keys such as results/ (no leading slash, no "..")'
  return (value) => {
    if (typeof value !== 'string' || value.length > 512 || !/^[A-Za-z0-9!_.*'()/-]*$/.test(value)) return { expected }
    if (value.startsWith('/') || value.split('/').includes('..')) return { expected }
    return { value: value === '' || value.endsWith('/') ? value : `${value}/` }
  }
}
