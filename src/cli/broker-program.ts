/**
 * `qworker broker`: the embedded broker in a process of its own, for several workers of one machine none of which is to
 * be the broker. Workers with the same RESULT_BASEDIR and BEANSTALK_PORT find it, and stand by.
 */

import { once } from 'node:events'
import type { Command } from 'commander'
import { BrokerError } from '../broker/broker-error.ts'
import { type Config, ConfigError, loadConfig, WORKER_KEYS } from '../config.ts'
import { brokerAddress } from './broker.ts'
import { makeCommand, parseCommandLine } from './command.ts'
import { describeBrokerError, exitCodeOf, startOwnBroker } from './embedded.ts'
import { complain, EXIT, writeOut } from './exit.ts'
import { shareFiles } from './startup.ts'

const NAME = 'qworker broker'

interface Flags {
  readonly config?: string
  readonly port?: string
}

export function makeProgram(): Command {
  return makeCommand(NAME)
    .description('Runs the embedded broker alone, on this machine, with its jobs in RESULT_BASEDIR/.state/broker.')
    .option('-c, --config <file>', 'rc file (YAML); see etc/qworkerrc for all keys')
    .option('-p, --port <n>', 'where it answers on 127.0.0.1 (rc: BEANSTALK_PORT)')
    .addHelpText(
      'after',
      `
Signals: TERM or INT ends it, its jobs stay in the journal. USR1 lets it take no more jobs.

Examples:
  qworker broker -c etc/qworkerrc
  RESULT_BASEDIR=/srv/results qworker broker -p 11301`,
    )
}

/** @returns the exit code */
export async function run(args: readonly string[]): Promise<number> {
  const { config: file, port } = await parseCommandLine<Flags>(makeProgram(), args)
  try {
    const flags = { BEANSTALK_SERVER: 'embedded', BEANSTALK_PORT: port }
    return await serve(await loadConfig({ file, flags, keys: WORKER_KEYS }))
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    for (const problem of error.problems) complain(NAME, problem)
    return error.code === 'missing_file' || error.code === 'unreadable_file' ? EXIT.noInput : EXIT.config
  }
}

async function serve(config: Config): Promise<number> {
  // By default it would open a debugger's port.
  process.on('SIGUSR1', () => undefined)
  try {
    const broker = await startOwnBroker(config, shareFiles(0, 'broker').broker)
    const stopped = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')])
    process.on('SIGUSR1', () => broker.drain())
    const jobs = broker.recovery?.jobs ?? 0
    await writeOut(`broker on ${brokerAddress(config)}: ${jobs} job${jobs === 1 ? '' : 's'} in its journal\n`)
    await stopped
    await broker.close()
    return EXIT.ok
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    complain(NAME, describeBrokerError(config, error))
    return exitCodeOf(error)
  }
}
