/** The broker as our programs name it. */

import type { Config } from '../config.ts'

export function brokerUrl(config: Config): string {
  const { BEANSTALK_SERVER: host, BEANSTALK_PORT: port } = config
  return `beanstalk://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** The driver's words for a broker that cannot be reached, and the next step. */
export function brokerAdvice(config: Config, error: Error): string {
  const start = `beanstalkd -l 127.0.0.1 -p ${config.BEANSTALK_PORT}`
  return `${error.message}: start it with "${start}", or set BEANSTALK_SERVER and BEANSTALK_PORT`
}
