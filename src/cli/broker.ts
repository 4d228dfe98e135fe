/** The broker as our programs name it. */

import type { Config } from '../config.ts'
import { EMBEDDED, makeServers, type Server } from '../queue/servers.ts'

/** Whoever embeds a broker means this machine alone. */
export const EMBEDDED_HOST = '127.0.0.1'

type Where = Pick<Config, 'BEANSTALK_SERVER' | 'BEANSTALK_PORT'>

export function isEmbedded({ BEANSTALK_SERVER }: Pick<Config, 'BEANSTALK_SERVER'>): boolean {
  return BEANSTALK_SERVER === EMBEDDED
}

/** One, as a rule; several share the jobs. */
export function serversOf(config: Where): readonly [Server, ...Server[]] {
  const named = isEmbedded(config) ? EMBEDDED_HOST : config.BEANSTALK_SERVER
  return makeServers(named, config.BEANSTALK_PORT) as readonly [Server, ...Server[]]
}

/** `host:port`; of several with commas between. */
export function brokerAddress(config: Where): string {
  return serversOf(config)
    .map(({ name }) => name)
    .join(', ')
}

/** The driver's words for a broker that cannot be reached, and the next step. */
export function brokerAdvice(config: Where, error: Error, server?: Server): string {
  if (isEmbedded(config)) return `${error.message}: start a worker with this BEANSTALK_PORT, which is the broker too`
  const [first, ...others] = serversOf(config)
  if (others.length > 0 && server === undefined) return `${error.message}: start one of them, or set BEANSTALK_SERVER`
  const start = `beanstalkd -l 127.0.0.1 -p ${(server ?? first).port}`
  return `${error.message}: start it with "${start}", or set BEANSTALK_SERVER and BEANSTALK_PORT`
}
