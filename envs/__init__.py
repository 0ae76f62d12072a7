"""Gymnasium environments of rlkd, shipped as the import package ``rlkd_envs``.

Importing registers ``rlkd/TeacherWeighting-v0``; ``gymnasium.make("rlkd_envs:rlkd/TeacherWeighting-v0")`` does both.
"""

from gymnasium.envs.registration import register, registry

ENV_ID = "rlkd/TeacherWeighting-v0"
ACTING_ENV_ID = "rlkd/TeacherActing-v0"
ASKING_ENV_ID = "rlkd/TeacherAsking-v0"

if ENV_ID not in registry:
    register(
        id=ENV_ID,
        entry_point="rlkd_envs.teacher_weighting:TeacherWeightingEnv",
        vector_entry_point="rlkd_envs.vector:TeacherWeightingVectorEnv",
    )
if ACTING_ENV_ID not in registry:  # a policy that brings its own observation has a vector face only
    register(id=ACTING_ENV_ID, vector_entry_point="rlkd_envs.actor_env:TeacherActingVectorEnv")
if ASKING_ENV_ID not in registry:
    register(
        id=ASKING_ENV_ID,
        entry_point="rlkd_envs.asking:TeacherAskingEnv",
        vector_entry_point="rlkd_envs.asking:TeacherAskingVectorEnv",
    )
