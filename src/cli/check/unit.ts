/** The systemd unit of a worker, held against its configuration. */

import { readdir } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { join, resolve } from 'node:path'
import { type Config, type ConfigKey, WORKER_KEYS } from '../../config.ts'
import { parseDuration } from '../../job/duration.ts'
import { readSmallFile } from '../../run/small-file.ts'
import { EXIT } from '../exit.ts'
import { STOP_MARGIN_SECONDS } from '../settings.ts'
import { type Finding, makeOk, makeProblem, makeWarning } from './finding.ts'

export const DEFAULT_UNIT = '/etc/systemd/system/qworker.service'
const UNIT = 'unit'
const STOP = 'stop'
/** systemd's own (DefaultTimeoutStopSec). */
const DEFAULT_STOP_SECONDS = 90
/** More than any has. */
const MAX_UNIT_BYTES = 2 ** 20

/** Key of [Service] -> its values, in their order; an empty one drops those before it. */
type Service = ReadonlyMap<string, readonly string[]>

/**
 * Whether jobs get the time that they were promised when the worker stops.
 * @param unit undefined: the usual place, where there may be none
 * @param rcFile that was checked
 */
export async function checkStop(
  config: Config,
  unit: string | undefined,
  rcFile: string | undefined,
): Promise<Finding[]> {
  const read = await readUnit(unit ?? DEFAULT_UNIT)
  if ('problem' in read) {
    if (unit !== undefined)
      return [makeProblem(UNIT, EXIT.noInput, read.problem), checkDrain(config, config.DRAIN_TIME)]
    return [
      makeOk(UNIT, `there is no ${DEFAULT_UNIT} (name another with --unit)`),
      checkDrain(config, config.DRAIN_TIME),
    ]
  }
  const { service } = read
  const environment = environmentOf(service)
  const drainSeconds = durationOf(environment.get('DRAIN_TIME')) ?? config.DRAIN_TIME
  return [
    checkTimeout(service, drainSeconds),
    checkDrain(config, drainSeconds),
    ...compareEnvironment(config, environment),
    ...compareRcFile(service, rcFile),
    ...compareUser(service),
  ]
}

function checkDrain({ TTR, GRACE_TIME }: Config, drainSeconds: number): Finding {
  const longest = TTR + GRACE_TIME
  const compared = `DRAIN_TIME ${drainSeconds} s, and TTR + GRACE_TIME are ${longest} s`
  if (drainSeconds >= longest) return makeOk(STOP, `${compared}: a job put with the default TTR ends before the worker`)
  const what = 'a job that began just before the worker stops is interrupted and run again'
  return makeWarning(STOP, `${compared}: ${what}; set DRAIN_TIME to ${longest} or more`)
}

function checkTimeout(service: Service, drainSeconds: number): Finding {
  const needed = drainSeconds + STOP_MARGIN_SECONDS
  const text = lastOf(service, 'TimeoutStopSec') ?? lastOf(service, 'TimeoutSec')
  const seconds = text === undefined ? DEFAULT_STOP_SECONDS : parseTimeSpan(text)
  if (seconds === undefined)
    return makeProblem(UNIT, EXIT.config, `TimeoutStopSec=${text} is no time that systemd knows; set ${needed + 1}`)
  const compared = `TimeoutStopSec is ${seconds} s, DRAIN_TIME and what comes after it take up to ${needed} s`
  if (seconds > needed) return makeOk(UNIT, compared)
  const remedy = `set TimeoutStopSec=${needed + 1} or more, or a shorter DRAIN_TIME`
  const isHeard = /^notify/.test(lastOf(service, 'Type') ?? '') && lastOf(service, 'NotifyAccess') === 'all'
  if (isHeard) return makeWarning(UNIT, `${compared}: it works only while systemd-notify gets through; ${remedy}`)
  return makeProblem(UNIT, EXIT.config, `${compared}: systemd kills it in the middle; ${remedy}`)
}

/** The unit's environment stands above the rc file: what was checked may not be what runs. */
function compareEnvironment(config: Config, environment: ReadonlyMap<string, string>): Finding[] {
  const keys = [...environment.keys()].filter((key): key is ConfigKey => WORKER_KEYS.includes(key as ConfigKey))
  const others = keys.filter((key) => {
    const value = config[key]
    const text = environment.get(key)
    if (Array.isArray(value)) return inOneForm(value.join()) !== inOneForm(text ?? '')
    return String(value) !== text && durationOf(text) !== value
  })
  if (others.length === 0) return []
  const names = others.map((key) => (key === 'SMTP_PASSWORD' ? key : `${key}=${environment.get(key)}`)).join(' ')
  return [makeWarning(UNIT, `the unit sets ${names}, which is not what was checked; check with the same environment`)]
}

/** Of a list as it may stand in a variable. */
function inOneForm(list: string): string {
  return list
    .trim()
    .split(/[\s,]+/)
    .join()
}

function compareRcFile(service: Service, rcFile: string | undefined): Finding[] {
  const [, named] = /\s(?:-c|--config)[ =]("[^"]+"|\S+)/.exec(lastOf(service, 'ExecStart') ?? '') ?? []
  const file = named?.replaceAll('"', '')
  if (file === (rcFile === undefined ? undefined : resolve(rcFile))) return []
  const what = file === undefined ? 'without an rc file' : `with ${file}`
  return [makeWarning(UNIT, `the unit starts the worker ${what}, and another was checked; give the same one with -c`)]
}

function compareUser(service: Service): Finding[] {
  const user = lastOf(service, 'User') ?? 'root'
  const { username, uid } = userInfo()
  if (user === username || user === String(uid)) return []
  const remedy = `check as that user (sudo -u ${user}), who may be denied what ${username} may do`
  return [makeWarning(UNIT, `the unit runs the worker as ${user}, this is ${username}; ${remedy}`)]
}

/** With what `systemctl edit` wrote beside it. */
async function readUnit(file: string): Promise<{ service: Service } | { problem: string }> {
  let text: string
  try {
    text = await readText(file)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return { problem: `${file} cannot be read (${code}); name the unit file of the worker with --unit` }
  }
  const folder = `${file}.d`
  // There is none, as a rule.
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith('.conf')).sort()
  const additions = await Promise.all(names.map((name) => readText(join(folder, name)).catch(() => '')))
  return { service: parseService([text, ...additions]) }
}

async function readText(file: string): Promise<string> {
  const bytes = await readSmallFile(file, MAX_UNIT_BYTES)
  if (bytes === undefined) throw Object.assign(new Error('too large'), { code: 'EFBIG' })
  return bytes.toString('utf8')
}

function parseService(texts: readonly string[]): Service {
  const service = new Map<string, string[]>()
  for (const text of texts) {
    let section = ''
    for (const line of text
      .replaceAll(/\\\r?\n/g, ' ')
      .split(/\r?\n/)
      .map((each) => each.trim())) {
      if (/^\[.*\]$/.test(line)) section = line
      const [, key = '', value = ''] = /^([A-Za-z]+)\s*=\s*(.*)$/.exec(line) ?? []
      if (section !== '[Service]' || key === '') continue
      service.set(key, value === '' ? [] : [...(service.get(key) ?? []), value])
    }
  }
  return service
}

function lastOf(service: Service, key: string): string | undefined {
  return service.get(key)?.at(-1)
}

/** `Environment=A=b "C=d e"`, several to a line. */
function environmentOf(service: Service): ReadonlyMap<string, string> {
  const environment = new Map<string, string>()
  for (const line of service.get('Environment') ?? []) {
    for (const [word] of line.matchAll(/"[^"]*"|'[^']*'|\S+/g)) {
      const bare = word.replace(/^(["'])(.*)\1$/, '$2')
      const at = bare.indexOf('=')
      if (at > 0) environment.set(bare.slice(0, at), bare.slice(at + 1))
    }
  }
  return environment
}

function durationOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  try {
    return parseDuration(text)
  } catch {
    return undefined
  }
}

const SPAN_SECONDS: readonly (readonly [RegExp, number])[] = [
  [/^(us|usec|µs|μs)$/, 1e-6],
  [/^(ms|msec)$/, 1e-3],
  [/^(|s|sec|seconds?)$/, 1],
  [/^(m|min|minutes?)$/, 60],
  [/^(h|hr|hours?)$/, 3600],
  [/^(d|days?)$/, 86_400],
  [/^(w|weeks?)$/, 604_800],
]

/** As in systemd.time(7), up to weeks: `90`, `2min 30s`, `infinity`; 0 stands for no limit. */
export function parseTimeSpan(text: string): number | undefined {
  if (text === 'infinity') return Number.POSITIVE_INFINITY
  if (!/^(\s*\d+(\.\d+)?\s*[a-zµμ]*)+\s*$/.test(text)) return undefined
  let seconds = 0
  for (const [, number = '', unit = ''] of text.matchAll(/(\d+(?:\.\d+)?)\s*([a-zµμ]*)/g)) {
    const factor = SPAN_SECONDS.find(([names]) => names.test(unit))?.[1]
    if (factor === undefined) return undefined
    seconds += Number(number) * factor
  }
  return seconds === 0 ? Number.POSITIVE_INFINITY : seconds
}
