/** `qworker check`: tells all that is right or wrong with an installation, and takes no job. */

import type { Command } from 'commander'
import { type Config, ConfigError, loadConfig, terminalEnvironment, WORKER_KEYS } from '../config.ts'
import { type Finding, lateMessage, makeOk, makeProblem, withinTime } from './check/finding.ts'
import { checkClock, checkGroups, checkLimits, checkTools } from './check/machine.ts'
import { checkCatalogue, checkResultFolder, checkTracker } from './check/places.ts'
import { checkBroker, checkHttp, checkS3, lateS3 } from './check/services.ts'
import { checkStop, DEFAULT_UNIT } from './check/unit.ts'
import { type ColorWhen, decideColors, paint } from './color.ts'
import { makeColorOption, makeCommand, parseCommandLine } from './command.ts'
import { EXIT, writeOut } from './exit.ts'

const NAME = 'qworker check'

interface Flags {
  readonly config?: string
  readonly embedded?: boolean
  readonly unit?: string
  readonly json?: boolean
  readonly color?: ColorWhen
}

export function makeProgram(): Command {
  return makeCommand(NAME)
    .description('Tells all that is right or wrong with an installation, one line each, and what to do about it.')
    .option('-c, --config <file>', 'rc file of the worker (YAML)')
    .option('--embedded', 'for a worker that is started so (rc: BEANSTALK_SERVER: embedded)')
    .option('--unit <file>', `systemd unit of the worker (${DEFAULT_UNIT}, if it is there)`)
    .option('--json', 'print one JSON object')
    .addOption(makeColorOption())
    .addHelpText(
      'after',
      `
It starts nothing, takes no job, and disturbs no worker that runs; a probe is written to the result folder and to the
bucket, and removed. Run it as the worker's user, with its environment.

Each line is ok, a warning (a worker runs, and something may be lost or go otherwise than meant) or a problem. Exits with
0 when there is no problem, else with the code of the first one: 66 no such file, 69 broker, port or bucket, 73 result
folder or tracker, 78 configuration, algorithms or limits.

Examples:
  qworker check -c qworkerrc
  sudo -u qworker qworker check -c /etc/qworkerrc --json`,
    )
}

/** @param args what follows the word check; resolves to the exit code */
export async function run(args: readonly string[]): Promise<number> {
  const flags = await parseCommandLine<Flags>(makeProgram(), args)
  decideColors(flags.color, terminalEnvironment())
  const findings = await checkAll(flags)
  await writeOut(flags.json ? makeJson(findings) : makeText(findings))
  return exitCodeOf(findings)
}

async function checkAll(flags: Flags): Promise<readonly Finding[]> {
  const config = await readConfig(flags)
  if (Array.isArray(config)) return config
  const guarded = (check: string, exitCode: number, what: string, work: Promise<Finding[]>) =>
    withinTime(work, () => [
      makeProblem(check, exitCode, `${lateMessage(what)}; see whether its disk or network hangs`),
    ])
  const groups = await checkGroups()
  const [results, broker, algorithms, s3, http, tools] = await Promise.all([
    guarded('results', EXIT.cantCreate, config.RESULT_BASEDIR, checkResultFolder(config)),
    checkBroker(config),
    guarded('algorithms', EXIT.config, 'the folders of ALGORITHM_DIRS', checkCatalogue(config, groups.controllers)),
    withinTime(checkS3(config), () => lateS3(lateMessage('S3'))),
    guarded('http', EXIT.unavailable, `the port ${config.HTTP_PORT}`, checkHttp(config)),
    guarded('tools', EXIT.config, 'ps', checkTools()),
  ])
  // Alone: its library keeps this process from all else while it reads.
  const isFolderGood = results.every(({ level }) => level !== 'problem')
  const tracker = isFolderGood
    ? await guarded('tracker', EXIT.cantCreate, 'the tracker', checkTracker(config))
    : [makeOk('tracker', 'not looked at before the result folder is in order')]
  return [
    makeOk('config', flags.config ?? 'no rc file is named: defaults and environment'),
    ...[...results, ...tracker, ...broker, ...algorithms, ...s3.findings, ...http],
    ...[...tools, ...checkLimits(config), checkClock(new Date(), s3.clockAheadMs), ...groups.findings],
    ...(await checkStop(config, flags.unit, flags.config)),
  ]
}

/** TTR is the producer's; the time to stop is measured by it. */
async function readConfig({ config: file, embedded }: Flags): Promise<Config | Finding[]> {
  try {
    const server = embedded ? { BEANSTALK_SERVER: 'embedded' } : {}
    return await loadConfig({ file, flags: server, keys: [...WORKER_KEYS, 'TTR'] })
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const isAbsent = error.code === 'missing_file' || error.code === 'unreadable_file'
    const problems = error.problems.map((message) =>
      makeProblem('config', isAbsent ? EXIT.noInput : EXIT.config, message),
    )
    return [...problems, makeOk('config', 'nothing else is looked at before that is mended')]
  }
}

function countOf(findings: readonly Finding[], level: Finding['level']): number {
  return findings.filter((finding) => finding.level === level).length
}

function exitCodeOf(findings: readonly Finding[]): number {
  return findings.find(({ level }) => level === 'problem')?.exitCode ?? EXIT.ok
}

const TONES = { ok: 'good', warning: 'caution', problem: 'bad' } as const

function makeText(findings: readonly Finding[]): string {
  const lines = findings.map(
    ({ level, check, message }) =>
      `${paint('stdout', TONES[level], level)}${' '.repeat(8 - level.length)} ${check.padEnd(10)} ${message}\n`,
  )
  const told = (['problem', 'warning'] as const).map((level) => {
    const count = countOf(findings, level)
    return `${count} ${level}${count === 1 ? '' : 's'}`
  })
  return `${lines.join('')}${told.join(', ')}\n`
}

function makeJson(findings: readonly Finding[]): string {
  return `${JSON.stringify({
    problems: countOf(findings, 'problem'),
    warnings: countOf(findings, 'warning'),
    exit_code: exitCodeOf(findings),
    findings: findings.map(({ check, level, message, exitCode }) => ({
      ...{ check, level, message },
      ...(level === 'problem' ? { exit_code: exitCode } : {}),
    })),
  })}\n`
}
