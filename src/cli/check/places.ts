/** What lies on this machine's disks: result folder, tracker, algorithms. */

import { algorithmEnvironment, type Config } from '../../config.ts'
import { type Algorithm, AlgorithmError, findStartFailure, resolveProgram } from '../../run/algorithm.ts'
import { openLocalStore } from '../../store/store.ts'
import { describeTracker, TrackerError } from '../../tracker/tracker.ts'
import { EXIT } from '../exit.ts'
import { readAlgorithms, trackerUrl } from '../settings.ts'
import { checkAlgorithms } from '../startup.ts'
import { type Finding, makeOk, makeProblem, makeWarning } from './finding.ts'

const RESULTS = 'results'
const TRACKER = 'tracker'
const ALGORITHMS = 'algorithms'

export async function checkResultFolder({ RESULT_BASEDIR }: Config): Promise<Finding[]> {
  const store = await openLocalStore(RESULT_BASEDIR)
  const problems = await store.check()
  await store.close()
  if (problems.length > 0) return problems.map((message) => makeProblem(RESULTS, EXIT.cantCreate, message))
  return [makeOk(RESULTS, `${RESULT_BASEDIR} can be written, and knows hard links`)]
}

/** Only where the result folder itself is in order. */
export async function checkTracker(config: Config): Promise<Finding[]> {
  try {
    const found = await describeTracker(trackerUrl(config))
    if (found === undefined) return [makeOk(TRACKER, 'there is none yet; the first worker makes it')]
    if (found.isToBeMigrated)
      return [makeOk(TRACKER, 'it is of an earlier version; the next worker brings it up to date')]
    const { openAttempts, copies } = found
    return [makeOk(TRACKER, `it is whole; attempts under way: ${openAttempts}, copies that wait for S3: ${copies}`)]
  } catch (error) {
    if (!(error instanceof TrackerError)) throw error
    return [makeProblem(TRACKER, EXIT.cantCreate, error.message)]
  }
}

/** @param controllers of cgroup v2, which hold for each run */
export async function checkCatalogue(config: Config, controllers: readonly string[]): Promise<Finding[]> {
  const catalogue = await readAlgorithms(config, controllers)
  const problems = checkAlgorithms(config, catalogue).map(({ exitCode, message }) =>
    makeProblem(ALGORITHMS, exitCode, message),
  )
  const told = new Set(problems.map(({ message }) => message))
  const doubles = catalogue.problems
    .filter((message) => !told.has(message))
    .map((message) => makeWarning(ALGORITHMS, `${message}; remove or rename one of them`))
  // Where none can be run, that message has the reasons.
  const broken = catalogue.algorithms.size === 0 ? [] : [...catalogue.broken.values()].map(tellBroken)
  const usable: Algorithm[] = []
  for (const algorithm of [...catalogue.algorithms.values()].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const problem = await findInterpreterProblem(algorithm)
    if (problem === undefined) usable.push(algorithm)
    else broken.push(tellBroken(problem))
  }
  return [...tellUsable(config, usable), ...problems, ...broken, ...doubles]
}

function tellBroken(message: string): Finding {
  const remedy = 'its jobs are buried until it is mended, or its folder is taken away'
  return makeProblem(ALGORITHMS, EXIT.config, `${message}; ${remedy}`)
}

function tellUsable(config: Config, all: readonly Algorithm[]): Finding[] {
  if (all.length === 0) return []
  const names = all.map(({ name, settings }) => {
    const unset = settings.filter((key) => (config as unknown as Record<string, unknown>)[key] === null)
    return unset.length === 0 ? name : `${name} (not set: ${unset.join(' ')})`
  })
  return [makeOk(ALGORITHMS, `${all.length} can be run: ${names.join(', ')}`)]
}

/** The program is there; what its first line names may not be. */
async function findInterpreterProblem(algorithm: Algorithm): Promise<string | undefined> {
  try {
    const program = resolveProgram(algorithm, algorithm.command[0] ?? '', algorithmEnvironment().PATH)
    const failure = await findStartFailure(program)
    return failure === undefined ? undefined : `algorithm ${algorithm.name}: ${program}: ${failure}`
  } catch (error) {
    if (!(error instanceof AlgorithmError)) throw error
    return error.message
  }
}
